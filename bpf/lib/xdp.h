/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fbr_uplink_in before there is an skb: UDP and echo replies of a leased session
 * go straight to their port, and what fbr_judge() condemns is dropped. Everything
 * else, and all TCP, passes on to tc: only there GRO makes super-packets of it.
 *
 * A frame from another end on this machine may carry half a checksum (only the
 * pseudo header's sum, as CHECKSUM_PARTIAL), and nothing here says so. The
 * container takes what XDP sends it for a frame off the wire, so only what is
 * right already is sent. And since the two ways do not keep the order between
 * them, a flow with one datagram that XDP leaves alone is left alone until its
 * lease is renewed (fbr_flow.no_xdp).
 */
#ifndef FBR_XDP_H
#define FBR_XDP_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "fast.h"
#include "instance.h"
#include "lease.h"
#include "nat.h"
#include "nport.h"
#include "reason.h"
#include "rewrite.h"
#include "stats.h"
#include "uplink.h"

/* Bytes of a datagram that are summed up at most: a container's stack does it
 * again, and where the uplink's hardware has done it already, tc need not at all.
 */
#define FBR_XDP_SUM_MAX 512

/* Whether the datagram in a frame with 20 bytes of IPv4 header is complete and its
 * checksum right, or absent. A function of its own, so that the verifier does not
 * follow what comes after it for each length.
 */
__fbr_global bool fbr_udp_sound(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(long)ctx->data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	const __u8 *at = (const void *)udp;
	__u32 i, len;
	__u64 sum;

	if ((void *)(udp + 1) > data_end)
		return false;
	len = bpf_ntohs(udp->len);
	sum = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_UDP) + udp->len;
	if (!udp->check)
		return true;
	if (len > FBR_XDP_SUM_MAX)
		return false;
	for (i = 0; i < FBR_XDP_SUM_MAX / 8 && i < len / 8; i++, at += 8) {
		if ((void *)(at + 8) > data_end)
			return false;
		sum += (__u64)((const __u32 *)at)[0] + ((const __u32 *)at)[1];
		/* Else the compiler merges the checks, which the verifier does not see through. */
		barrier_var(at);
	}
	if (len & 4) {
		if ((void *)(at + 4) > data_end)
			return false;
		sum += *(const __u32 *)at;
		at += 4;
	}
	if (len & 2) {
		if ((void *)(at + 2) > data_end)
			return false;
		sum += *(const __u16 *)at;
		at += 2;
	}
	if (len & 1) {
		if ((void *)(at + 1) > data_end)
			return false;
		sum += bpf_htons(*at << 8);
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return fbr_fold(sum) == 0xffff;
}

/* A frame of len bytes, all of them linear: sends it to its port if it is a
 * leased session's and XDP's to send. Returns the verdict, or -1 if it is no such
 * session's and may be nobody's.
 */
static __always_inline int fbr_xdp_forward(struct xdp_md *ctx, const struct fbr_dev *u,
					   const struct fbr_conf *c, __u32 len)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u64 now = fbr_now();
	struct fbr_flow_key k;
	struct fbr_stats *s;
	struct fbr_flow *f;
	struct fbr_dev *t;
	__u32 oif;

	if (!fbr_fast_parse(NULL, len, data, data_end, ETH_HLEN, false, &k) ||
	    !(fbr_in_range(c, k.dport) || c->published))
		return -1;
	f = fbr_inbound_hit(&k, c, now, &t);
	if (!f)
		return -1;
	if (f->no_xdp || !(t->flags & FBR_DEV_XDP) || len - ETH_HLEN > f->mtu)
		return XDP_PASS;
	if (k.proto == IPPROTO_UDP && !fbr_udp_sound(ctx)) {
		f->no_xdp = 1;
		return XDP_PASS;
	}
	oif = f->oif;
	s = fbr_stats_get(u);
	if (s)
		fbr_count_frame(&s->rx[FBR_FAST], len);
	s = fbr_stats_get(t);
	if (s)
		fbr_count_frame(&s->tx[FBR_FAST], len);
	fbr_flow_seen(f, now, cfg_hz);
	/* Point of no return. */
	if (fbr_rewrite_frame(data, data_end, f, &k, false, false, false))
		return XDP_DROP;
	return bpf_redirect(oif, 0);
}

/* A segment of a connection that is open, or claims to be. */
static __always_inline bool fbr_tcp_goes_on(const struct iphdr *ip, void *data_end)
{
	const struct tcphdr *tcp = (const void *)(ip + 1);

	return ip->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= data_end &&
	       (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_ACK;
}

/* Whether an address is a container's that nobody outside may see. */
static __always_inline bool fbr_hidden_host(__be32 addr)
{
	struct fbr_dev *p = fbr_host_port(addr);

	return p && !(p->flags & FBR_DEV_ROUTED);
}

static __always_inline int fbr_xdp_from_uplink(struct xdp_md *ctx)
{
	struct fbr_dev *u = fbr_dev_get(ctx->ingress_ifindex);
	struct fbr_conf *c = fbr_conf_get();
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct fbr_stats *s;
	__u32 why, len;

	if (!u || !c || (void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->version != 4 || ip->ihl < 5)
		return XDP_PASS;
	len = bpf_xdp_get_buff_len(ctx);
	if (ip->daddr != u->ip &&
	    fbr_hidden_host(ip->daddr)) { /* a flow is for an address of the host's */
		why = fbr_martian(ctx, u, ip->saddr, ip->daddr) ? FBR_MARTIAN : FBR_DIRECT;
		goto drop;
	}
	if (ip->protocol != IPPROTO_TCP && len == (__u32)(data_end - data)) {
		int verdict = fbr_xdp_forward(ctx, u, c, len);

		if (verdict >= 0)
			return verdict;
	} else if (ip->daddr == u->ip && fbr_tcp_goes_on(ip, data_end)) {
		/* The bulk: looking its source up would cost more than it saves. */
		return XDP_PASS;
	}
	why = fbr_judge(ctx, u, ip->saddr, ip->daddr);
	if (!why)
		return XDP_PASS;
drop:
	s = fbr_stats_get(u);
	if (s)
		fbr_count_frame(&s->rx[FBR_SLOW], len);
	fbr_count_drop(u, why);
	return XDP_DROP;
}

#endif
