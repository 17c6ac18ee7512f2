/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last line of defence: stops a container's address that would leave by any device but
 * its own bridge or an uplink. On an uplink fbr_uplink_out decides, so a device counts as
 * an uplink only while that program is attached. The guard is a netfilter link, not a rule:
 * "nft flush ruleset" does not remove it.
 */
#ifndef FBR_GUARD_H
#define FBR_GUARD_H

#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "ct.h"
#include "device.h"
#include "hair.h"
#include "kctx.h"
#include "parse.h"
#include "plain.h"
#include "reason.h"
#include "stats.h"
#include "stranded.h"

/* Whether the network of addr forbids it to leave for remote by device out (ifindex). led:
 * the device is another network's bridge, and a rule of the host directs the packet there.
 */
static __always_inline bool fbr_guarded(fbr_addr addr, fbr_addr remote, __u32 out, bool led)
{
	struct fbr_net *n = fbr_net_get(addr);

	if (!n || n->bridge == out)
		return false;
	if (led || (n->flags & FBR_NET_OWN))
		return n->flags & FBR_NET_INTERNAL;
	return !fbr_plain_to(n, FBR_ARG(remote));
}

__fbr_global int fbr_guard_count(fbr_addr_arg addr, __u32 reason)
{
	struct fbr_dev *d = FBR_GIVEN(addr) ? fbr_addr_port(addr) : NULL;

	if (d)
		fbr_count_drop(d, reason);
	return 0;
}

/* An address of a packet that is forwarded, by its offset in the IPv4 header; 0 if it cannot
 * be read. The kernel has made the header linear.
 */
static __always_inline fbr_addr fbr_forwarded_addr(struct bpf_nf_ctx *ctx, __u32 offset)
{
	fbr_addr addr = FBR_NO_ADDR;

	bpf_probe_read_kernel(&addr, sizeof(addr), ctx->skb->data + offset);
	return addr;
}

static __always_inline fbr_addr fbr_forwarded_to(struct bpf_nf_ctx *ctx)
{
	return fbr_forwarded_addr(ctx, __builtin_offsetof(fbr_ip, daddr));
}

/* Whether a packet that came in by the bridge in leaves by another device than its network's
 * only one. The kernel, or a rule, may have given it an address of the host.
 */
static __always_inline bool fbr_strays(struct bpf_nf_ctx *ctx, const struct fbr_dev *in,
				       const struct fbr_dev *d, __u32 out)
{
	struct fbr_dev *port;
	fbr_addr saddr;

	if (!(in->flags & FBR_DEV_VIA) || (d && (d->flags & FBR_DEV_BRIDGE)) ||
	    !fbr_forwarded(ctx) || fbr_dev_leads(in, out))
		return false;
	saddr = fbr_forwarded_addr(ctx, __builtin_offsetof(fbr_ip, saddr));
	port = fbr_addr_port(FBR_ARG(saddr));
	if (port)
		fbr_count_drop(port, FBR_NO_UPLINK);
	else if (d)
		fbr_count_drop(d, FBR_NO_UPLINK);
	return true;
}

/* Whether the host forwards a packet to elsewhere than a bridge of ours only because we
 * have opened the device that it came in by: ip_forward is 0. Multicast routing has a
 * setting of its own.
 */
static __always_inline bool fbr_opened_by_us(struct bpf_nf_ctx *ctx, const struct fbr_dev *in,
					     const struct fbr_dev *out)
{
	struct fbr_conf *c = fbr_conf_get();
	fbr_addr daddr;

	if (!c || (in ? !(in->flags & FBR_IP_CLOSED) : !FBR_OPENED(c)) ||
	    (out && (out->flags & FBR_DEV_BRIDGE)) || fbr_forwards(ctx->state->net))
		return false;
	if (!in && !fbr_forwarded(ctx))
		return false;
	daddr = fbr_forwarded_to(ctx);
	return !fbr_addr_zero(daddr) && !fbr_multicast(daddr);
}

/* Whether the last check on the way out is attached to a device. Asks the kernel, because
 * fbr_devs may list an uplink that has lost its program. The program is known by its name,
 * which upgrades do not change, and which says the family.
 */
static __always_inline bool fbr_has_uplink_out(struct net_device *dev)
{
	const char eth[16] = FBR_KERNEL_NAME "_uplink_out", raw[16] = FBR_KERNEL_NAME "_tun_out";
	struct bpf_mprog_entry *e = dev->tcx_egress;
	char name[16];

	if (!e)
		return false;
	for (__u32 i = 0; i < BPF_MPROG_MAX; i++) {
		struct bpf_mprog_fp *fp = bpf_rdonly_cast(
			(void *)e + bpf_core_field_offset(struct bpf_mprog_entry, fp_items) +
				i * sizeof(*fp),
			bpf_core_type_id_kernel(struct bpf_mprog_fp));

		if (!fp->prog)
			return false;
		if (bpf_probe_read_kernel(name, sizeof(name), fp->prog->aux->name))
			return false;
		if (!__builtin_memcmp(name, eth, sizeof(name)) ||
		    !__builtin_memcmp(name, raw, sizeof(name)))
			return true;
	}
	return false;
}

static __always_inline int fbr_guard_check(struct bpf_nf_ctx *ctx)
{
	__u32 out = ctx->state->out ? ctx->state->out->ifindex : 0;
	struct fbr_dev *d = fbr_dev_get(out), *in = fbr_dev_get(ctx->skb->skb_iif);
	struct bpf_dynptr pkt;
	fbr_ip ip, inner;
	__u8 icmp_type;
	fbr_addr to;
	__u32 off;

	if (in && FBR_AS_OTHERS(in))
		in = NULL;
	if (fbr_opened_by_us(ctx, in, d)) {
		if (in)
			fbr_count_drop(in, FBR_ISOLATED);
		return NF_DROP;
	}
	/* From an internal network, whatever rules of the host have made of the addresses. */
	if (in && (in->flags & FBR_DEV_INTERNAL) && in->bridge != out) {
		to = fbr_forwarded_to(ctx);
		fbr_guard_count(FBR_ARG(to), FBR_ISOLATED);
		return NF_DROP;
	}
	if (in && fbr_strays(ctx, in, d, out))
		return NF_DROP;
	if (d && (d->flags & FBR_DEV_UPLINK)) {
		if (fbr_has_uplink_out(ctx->state->out))
			return NF_ACCEPT;
		d = NULL;
	}
	if (bpf_dynptr_from_skb(ctx->skb, 0, &pkt) || bpf_dynptr_read(&ip, sizeof(ip), &pkt, 0, 0))
		return NF_ACCEPT;
	/* To another network by a published port. */
	if (d && (d->flags & FBR_DEV_BRIDGE) && fbr_hair_session(ctx->skb->hash, ip.saddr))
		return NF_ACCEPT;
	if (fbr_guarded(ip.saddr, ip.daddr, out,
			d && (d->flags & FBR_DEV_BRIDGE) && fbr_ct_led(ctx->skb))) {
		if (!d)
			fbr_strand(ctx->skb, ip.saddr, ip.daddr);
		fbr_guard_count(FBR_ARG(ip.saddr), d ? FBR_ISOLATED : FBR_NO_UPLINK);
		return NF_DROP;
	}
	if (ip.protocol != FBR_ICMP || (d && (d->flags & FBR_DEV_BRIDGE)) || fbr_ip_later(&ip))
		return NF_ACCEPT;
	/* An ICMP error must not carry a container's address outside either. */
	off = fbr_ip_len(&ip);
	if (bpf_dynptr_read(&icmp_type, 1, &pkt, off, 0) || !fbr_icmp_is_error(icmp_type))
		return NF_ACCEPT;
	if (bpf_dynptr_read(&inner, sizeof(inner), &pkt, off + sizeof(struct icmphdr), 0))
		return NF_ACCEPT;
	if (fbr_guarded(inner.daddr, ip.daddr, out, false) ||
	    fbr_guarded(inner.saddr, ip.daddr, out, false)) {
		fbr_guard_count(FBR_ARG(inner.daddr), FBR_NO_UPLINK);
		return NF_DROP;
	}
	return NF_ACCEPT;
}

#endif
