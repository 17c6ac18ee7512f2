/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Next hops. A lease carries the MAC address of the next hop, which may get another one: a
 * gateway that moves to another machine announces it by ARP or neighbour discovery. The
 * kernel uses the new one at once, so the leases that lead to the old one end then. What the
 * kernel makes of an announcement, of an answer or of "ip neigh replace" is its own affair:
 * fbr_neighbour looks at what has come of it.
 */
#ifndef FBR_HOP_H
#define FBR_HOP_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_helpers.h"
#include "config.h"
#include "instance.h"
#include "kctx.h"
#include "lease.h"
#include "l2.h"

#define FBR_HOPS_MAX 4096 /* a power of two */

/* fbr_hops[hash of device and address]: a next hop, and its MAC address as leases have it */
struct fbr_hop {
	__u32 oif;      /* 0: none */
	__be32 addr[4]; /* an IPv4 address stands in the first */
	__u8 mac[6];
	__u16 pad;
};

/* A hint: two next hops that share a place are known in turn, and a change of one that is
 * not known is seen when its leases end.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_HOPS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_hop);
} fbr_hops SEC(".maps");

/* Where fbr_hops has a next hop, or another one. */
static __always_inline struct fbr_hop *fbr_hop_at(const struct fbr_hop *h)
{
	__u32 at = h->oif ^ h->addr[0] ^ h->addr[1] ^ h->addr[2] ^ h->addr[3];

	at = at * 0x9e3779b1 >> 16 & (FBR_HOPS_MAX - 1);
	return bpf_map_lookup_elem(&fbr_hops, &at);
}

static __always_inline bool fbr_hop_same(const struct fbr_hop *a, const struct fbr_hop *b)
{
	return a->oif == b->oif && a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] &&
	       a->addr[2] == b->addr[2] && a->addr[3] == b->addr[3];
}

/* Notes the next hop of a packet for daddr that the kernel has routed out by device oif, a
 * device with L2 header. Returns whether a lease may lead there. It may not if the next
 * hop had another MAC address until now: the frame may be older than the news.
 */
__fbr_global bool fbr_hop_known(struct __sk_buff *skb, __u32 oif, fbr_addr_arg daddr)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	unsigned long dst = k->_skb_refdst & ~SKB_DST_NOREF;
	struct fbr_hop h = { .oif = oif, FBR_HOP_INIT(daddr) }, *known;
	bool moved;

	if (!dst || !FBR_GIVEN(daddr))
		return true; /* a packet of BPF_PROG_TEST_RUN */
	fbr_next_hop_of(dst, daddr, &h.addr);
	if (bpf_skb_load_bytes(skb, 0, h.mac, sizeof(h.mac)))
		return false;
	known = fbr_hop_at(&h);
	if (!known)
		return false;
	if (!fbr_hop_same(known, &h)) {
		*known = h;
		return true;
	}
	moved = !fbr_mac_equal(known->mac, h.mac);
	if (moved)
		__builtin_memcpy(known->mac, h.mac, sizeof(h.mac));
	return !moved;
}

/* The kernel knows something new of a neighbour. If leases lead there and it has got another
 * MAC address, they end.
 */
static __always_inline int fbr_hop_heard(struct neighbour *n)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_hop h = {}, *known;

	if (!c || n->dev->nd_net.net->net_cookie != cfg_netns || !(n->nud_state & NUD_VALID))
		return 0;
	h.oif = n->dev->ifindex;
	bpf_probe_read_kernel(&h.addr, n->tbl->family == AF_INET ? 4 : 16, n->primary_key);
	bpf_probe_read_kernel(&h.mac, sizeof(h.mac), n->ha);
	known = fbr_hop_at(&h);
	if (!known || !fbr_hop_same(known, &h) || fbr_mac_equal(known->mac, h.mac))
		return 0;
	__builtin_memcpy(known->mac, h.mac, sizeof(h.mac));
	fbr_revoke(c);
	return 0;
}

#endif
