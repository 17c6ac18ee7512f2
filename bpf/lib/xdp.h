/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* fbr_uplink_in before there is an skb. UDP and echo replies of a leased session go
 * straight to their port, and packets that fbr_judge() rejects are dropped. Everything else
 * passes on to tc, including all TCP: only there does GRO build super-packets.
 *
 * A frame from elsewhere on this machine may carry a partial checksum, the sum of the
 * pseudo header only (CHECKSUM_PARTIAL), and nothing in XDP shows that. The container takes
 * what XDP sends for a frame off the wire. So XDP sends only packets whose checksum is
 * already right.
 *
 * XDP and tc do not keep the order between them. So once XDP leaves one datagram of a flow
 * to tc, it leaves the whole flow to tc until the lease is renewed (fbr_flow.no_xdp).
 */
#ifndef FBR_XDP_H
#define FBR_XDP_H

#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "fast.h"
#include "instance.h"
#include "kctx.h"
#include "lease.h"
#include "nat.h"
#include "nport.h"
#include "reason.h"
#include "rewrite.h"
#include "stats.h"
#include "uplink.h"

/* Only datagrams up to this many bytes are summed. A container's stack sums them again, and
 * with checksum offload on the uplink, tc does not need to sum at all.
 */
#define FBR_XDP_SUM_MAX 512

/* Whether the datagram in a frame with 20 bytes of IPv4 header is complete, and its
 * checksum right or absent. A separate function, so that the verifier does not follow the
 * caller's code once for each length.
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
		/* Else the compiler merges the checks, which the verifier does not understand. */
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

/* Whether a frame is for the device's own MAC address. Others are left to tc, which knows
 * them by the skb.
 */
static __always_inline bool fbr_xdp_for_host(struct xdp_md *ctx, const struct ethhdr *eth)
{
	struct xdp_buff *k = bpf_cast_to_kern_ctx(ctx);
	const struct ethhdr *own =
		bpf_rdonly_cast(k->rxq->dev->dev_addr, bpf_core_type_id_kernel(struct ethhdr));
	__u32 i;

	for (i = 0; i < ETH_ALEN; i++)
		if (eth->h_dest[i] != own->h_dest[i])
			return false;
	return true;
}

/* Sends a frame of len bytes, all linear, to its port if it belongs to a leased session and
 * XDP may send it. Returns the verdict, or -1 if it belongs to no leased session.
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
	f = fbr_inbound_hit(&k, u, c, now, &t);
	if (!f)
		return -1;
	if (f->no_xdp || !(t->flags & FBR_DEV_XDP) || len - ETH_HLEN > f->mtu ||
	    !fbr_xdp_for_host(ctx, data))
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
	if (fbr_rewrite_frame(data, data_end, f, &k, false, false, false, false))
		return XDP_DROP;
	return bpf_redirect(oif, 0);
}

/* Whether this is a segment of a connection that is open, or claims to be. */
static __always_inline bool fbr_tcp_goes_on(const struct iphdr *ip, void *data_end)
{
	const struct tcphdr *tcp = (const void *)(ip + 1);

	return ip->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= data_end &&
	       (tcp->flags & (TCP_SYN | TCP_ACK)) == TCP_ACK;
}

static __always_inline int fbr_xdp_from_uplink(struct xdp_md *ctx)
{
	struct fbr_dev *u = fbr_dev_get(ctx->ingress_ifindex);
	struct fbr_conf *c = fbr_conf_get();
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct fbr_dev *port;
	struct fbr_stats *s;
	__u32 why, len;

	if (!u || !c || (void *)(ip + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->version != 4 || ip->ihl < 5)
		return XDP_PASS;
	len = bpf_xdp_get_buff_len(ctx);
	port = ip->daddr != u->ip ? fbr_host_port(ip->daddr) : NULL;
	if (port && (port->flags & FBR_DEV_PLAIN))
		return XDP_PASS;
	if (port) { /* flows have an address of the host */
		why = fbr_martian(ctx, u, ip->saddr, ip->daddr) ? FBR_MARTIAN : FBR_DIRECT;
		goto drop;
	}
	if (ip->protocol != IPPROTO_TCP && len == (__u32)(data_end - data)) {
		int verdict = fbr_xdp_forward(ctx, u, c, len);

		if (verdict >= 0)
			return verdict;
	} else if (ip->daddr == u->ip && fbr_tcp_goes_on(ip, data_end)) {
		/* Most traffic: looking up its source would cost more than it saves. */
		return XDP_PASS;
	}
	why = fbr_judge(ctx, u, ip->saddr, ip->daddr, ip->saddr);
	if (!why)
		return XDP_PASS;
drop:
	if (!fbr_xdp_for_host(ctx, eth))
		return XDP_PASS;
	s = fbr_stats_get(u);
	if (s)
		fbr_count_frame(&s->rx[FBR_SLOW], len);
	fbr_count_drop(u, why);
	return XDP_DROP;
}

#endif
