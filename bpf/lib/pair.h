/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Leases for pairs of ports of one bridge.
 *
 * Where only MAC addresses decide about a frame, the fast path has one lease for all flows
 * and protocols from one port to another. It is granted when a frame that the kernel's
 * bridge has carried reaches the other port's last hook (fbr_port_out). So the fast path
 * follows isolated ports, spanning tree states, VLANs, a port that has left its bridge and
 * a bridge that is down, within the length of a lease.
 */
#ifndef FBR_PAIR_H
#define FBR_PAIR_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "brnf.h"
#include "clock.h"
#include "device.h"
#include "instance.h"
#include "kctx.h"
#include "lease.h"
#include "parse.h"
#include "port.h"
#include "stats.h"
#include "way.h"

#define FBR_PAIR_BITS 12 /* of a hash of a pair */

/* Frames that port from sends to the MAC address with this end go to port to. The lease
 * (granted) is written last.
 */
struct fbr_pair {
	__u64 granted; /* jiffies; 0: no lease */
	__u32 from;    /* ifindex */
	__u32 end;     /* the last four bytes of the MAC address: own ones differ in these */
	__u32 to;      /* ifindex */
	__u32 lease_len;
};

/* fbr_pair[hash of from and end]: two pairs, so that two with the same hash are both fast */
struct fbr_pairs {
	struct fbr_pair way[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FBR_PAIR_BITS);
	__type(key, __u32);
	__type(value, struct fbr_pairs);
} fbr_pair SEC(".maps");

static __always_inline struct fbr_pairs *fbr_pairs_at(__u32 from, __u32 end)
{
	__u32 at = ((end ^ from * 0x85ebca6b) * 0x9e3779b1) >> (32 - FBR_PAIR_BITS);

	return bpf_map_lookup_elem(&fbr_pair, &at);
}

static __always_inline bool fbr_pair_is(const struct fbr_pair *e, __u32 from, __u32 end)
{
	return *(const volatile __u64 *)&e->from == (from | (__u64)end << 32);
}

/* Whether a port may send a packet to another port of its bridge. In an internal network it
 * must be addressed to that port's container.
 */
static __always_inline bool fbr_beside(const struct fbr_dev *p, const struct fbr_dev *t,
				       fbr_addr daddr)
{
	return t->bridge == p->bridge &&
	       (!(p->flags & FBR_DEV_INTERNAL) || fbr_port_has(t, FBR_ARG(daddr)));
}

/* The port (ifindex) that the lease for frames from p to MAC addresses with this end leads
 * to; 0: there is no lease. The lease is read before the pair: whoever writes another pair
 * there ends the lease first.
 */
static __always_inline __u32 fbr_pair_to(const struct fbr_dev *p, const struct fbr_conf *c,
					 __u32 end)
{
	struct fbr_pairs *s = fbr_pairs_at(p->ifindex, end);
	struct fbr_pair *e;
	__u64 granted;

	if (!s)
		return 0;
	e = &s->way[0];
	if (!fbr_pair_is(e, p->ifindex, end))
		e = &s->way[1];
	granted = *(volatile __u64 *)&e->granted;
	barrier();
	if (!fbr_pair_is(e, p->ifindex, end) ||
	    !fbr_lease_lasts(granted, e->lease_len, c, fbr_now()))
		return 0;
	return e->to;
}

/* Whether frames from p may go straight to t, if there is a lease. */
static __always_inline bool fbr_pair_fits(const struct fbr_dev *p, const struct fbr_dev *t)
{
	return t->mtu >= p->mtu && !((p->flags | t->flags) & FBR_DEV_KERNEL_PATH);
}

/* The port that a frame from p to this MAC address may go straight to, or NULL. */
static __always_inline struct fbr_dev *fbr_pair_hit(const struct fbr_dev *p,
						    const struct fbr_conf *c, const __u8 *mac)
{
	struct fbr_dev *t = fbr_dev_get(fbr_pair_to(p, c, *(__u32 *)&mac[2]));

	return t && fbr_mac_equal(t->mac, mac) && fbr_pair_fits(p, t) ? t : NULL;
}

/* Whether a frame of p's to another port t of its bridge may go straight there: by the lease
 * of its flow, or, to an allowed MAC address that t holds, by that of the pair.
 */
__fbr_global bool fbr_beside_hit(struct __sk_buff *skb, const struct fbr_dev *p,
				 const struct fbr_dev *t)
{
	if (!p || !t)
		return false;

	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct fbr_conf *c = fbr_conf_get();
	struct ethhdr *eth = data;

	if (!c || !fbr_pair_fits(p, t) || (void *)(eth + 1) > data_end)
		return false;
	return ((t->flags & FBR_DEV_ALLOWED) &&
		fbr_pair_to(p, c, *(__u32 *)&eth->h_dest[2]) == t->ifindex) ||
	       fbr_way_beside(skb, p, t, c);
}

/* Sends a frame of p's unchanged into the container of a port of its bridge, which may be p. */
static __always_inline int fbr_send_beside(struct __sk_buff *skb, const struct fbr_dev *p,
					   const struct fbr_dev *t)
{
	fbr_count_rx(skb, p, FBR_FAST);
	fbr_count_tx(skb, t, FBR_FAST);
	return bpf_redirect_peer(t->ifindex, 0);
}

/* A device's own MTU (bytes, L3). */
static __always_inline __u32 fbr_device_mtu(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;

	return dev ? dev->mtu : 0;
}

/* Whether the kernel's bridge has carried this frame unchanged between the two ports, to the
 * MAC address dst.
 */
static __always_inline bool fbr_pair_carried(struct __sk_buff *skb, const struct fbr_dev *from,
					     const struct fbr_dev *to, __u8 *dst)
{
	return (from->flags & FBR_DEV_PORT) && from != to && from->bridge == to->bridge &&
	       !((from->flags | to->flags) & FBR_DEV_KERNEL_PATH) &&
	       skb->protocol == bpf_htons(FBR_ETH_P) && !skb->vlan_present &&
	       fbr_device_mtu(skb) >= from->mtu && !bpf_skb_load_bytes(skb, 0, dst, ETH_ALEN) &&
	       fbr_port_has_mac(to, dst);
}

/* Grants the lease of the pair that a delivered frame was carried between. Where
 * netfilter looks at frames, only its flow gets a lease. A pair whose lease is still valid
 * keeps its place: a third one with the same hash waits.
 */
__fbr_global int fbr_pair_grant(struct __sk_buff *skb, const struct fbr_dev *from,
				const struct fbr_dev *to)
{
	if (!from || !to)
		return 0;

	__u8 dst[8] __attribute__((aligned(4))) = {};
	struct fbr_conf *c = fbr_conf_get();
	__u64 now = fbr_now();
	struct fbr_pairs *s;
	struct fbr_pair *e;
	struct fbr_pkt p;
	__u32 end;

	if (!c || !c->lease || !fbr_pair_carried(skb, from, to, dst))
		return 0;
	if (fbr_brnf_sees(skb, to->bridge))
		return fbr_parse(skb, &p)
			       ? 0
			       : fbr_way_passed(skb, &p, FBR_WAY_BESIDE, from->ifindex, to->mtu);
	__builtin_memcpy(&end, &dst[2], sizeof(end));
	s = fbr_pairs_at(from->ifindex, end);
	if (!s)
		return 0;
	e = &s->way[0];
	if (fbr_pair_is(&s->way[1], from->ifindex, end) ||
	    (!fbr_pair_is(e, from->ifindex, end) &&
	     fbr_lease_lasts(e->granted, e->lease_len, c, now)))
		e = &s->way[1];
	if (!fbr_pair_is(e, from->ifindex, end) &&
	    fbr_lease_lasts(e->granted, e->lease_len, c, now))
		return 0;
	if (!fbr_pair_is(e, from->ifindex, end) || e->to != to->ifindex) {
		*(volatile __u64 *)&e->granted = 0;
		barrier();
		*(volatile __u64 *)&e->from = from->ifindex | (__u64)end << 32;
		e->to = to->ifindex;
	}
	e->lease_len = fbr_lease_len(c, now);
	barrier();
	*(volatile __u64 *)&e->granted = now;
	return 0;
}

#endif
