/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Leases of flows that are not translated: a cache of ways. There is nothing to allocate and
 * nothing to expire: a flow that finds no place stays on the kernel's path.
 *
 * A direction of a flow has a way for one lease after the kernel has let one of its packets
 * through to the last hook. TCP with SYN, FIN or RST, fragments and ICMP errors grant none,
 * nor does what connection tracking translates or a helper follows.
 */
#ifndef FBR_WAY_H
#define FBR_WAY_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "allowed.h"
#include "clock.h"
#include "csum.h"
#include "ct.h"
#include "device.h"
#include "fast.h"
#include "flow.h"
#include "instance.h"
#include "l2.h"
#include "lease.h"
#include "parse.h"
#include "rewrite.h"
#include "stats.h"

#define FBR_WAYS 65536 /* a power of two */

/* Where the packet travels, part of the key */
enum fbr_way_kind {
	FBR_WAY_BESIDE = 1, /* from port to port of one bridge, as it is */
	FBR_WAY_OUT = 2,    /* from a port by an uplink */
	FBR_WAY_IN = 3,     /* from an uplink to a port */
};

/* fbr_way[hash of the key, or the neighbour's]. The lease (granted) is written last. */
struct fbr_way {
	struct fbr_flow_key key; /* as on the wire; enum fbr_way_kind in pad[0] */
	__u64 granted;           /* jiffies; 0: no lease */
	__u32 writing;           /* somebody is about to grant; changed by compare-and-swap */
	__u32 via;               /* device that the packet must come in by */
	__u32 oif;               /* device to send to */
	__u16 mtu;               /* of the way, bytes, L3 */
	__u16 lease_len;         /* jiffies */
	__u8 macs[12];           /* destination and source, from the frame the kernel built */
	__u32 pad;
};

_Static_assert(sizeof(struct fbr_way) == (FBR_AF == 4 ? 56 : 80), "fbr_way");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_WAYS);
	__type(key, __u32);
	__type(value, struct fbr_way);
} fbr_way SEC(".maps");

/* What a hit needs of an entry, copied. */
struct fbr_step {
	__u32 oif;
	__u32 mtu;
	__u32 macs[3];
};

static __always_inline void fbr_way_key(struct fbr_flow_key *k, enum fbr_way_kind kind)
{
	/* Eight bytes at once: see fbr_fast_key. */
	((__u64 *)k)[FBR_KEY_WORDS - 1] |= (__u64)kind << 40;
}

/* The entry number i (0 or 1) of the two that a key with hash h may have. */
static __always_inline struct fbr_way *fbr_way_at(__u32 h, __u32 i)
{
	__u32 at = (h ^ i) & (FBR_WAYS - 1);

	return bpf_map_lookup_elem(&fbr_way, &at);
}

static __always_inline bool fbr_way_is(const struct fbr_way *w, const struct fbr_flow_key *k)
{
	return fbr_words_same((const volatile __u64 *)&w->key, (const __u64 *)k);
}

/* Copies the way of a packet with the key k that came in by the device via. False if it has
 * none. An entry may become another flow's meanwhile: the key and the lease are looked at
 * again after everything else.
 */
static __always_inline bool fbr_way_take(const struct fbr_flow_key *k, __u32 via,
					 const struct fbr_conf *c, struct fbr_step *s)
{
	__u32 h = fbr_flow_hash(k);
	struct fbr_way *w = fbr_way_at(h, 0);
	__u64 granted;

	if (w && !fbr_way_is(w, k))
		w = fbr_way_at(h, 1);
	if (!w || !fbr_way_is(w, k))
		return false;
	granted = *(volatile __u64 *)&w->granted;
	if (!fbr_lease_lasts(granted, w->lease_len, c, fbr_now()) || w->via != via)
		return false;
	s->oif = w->oif;
	s->mtu = w->mtu;
	s->macs[0] = *(__u32 *)&w->macs[0];
	s->macs[1] = *(__u32 *)&w->macs[4];
	s->macs[2] = *(__u32 *)&w->macs[8];
	barrier();
	return fbr_way_is(w, k) && *(volatile __u64 *)&w->granted == granted;
}

/* Ends the lease of a key, if it has one. */
static __always_inline void fbr_way_end(const struct fbr_flow_key *k)
{
	__u32 h = fbr_flow_hash(k), i;

	for (i = 0; i < 2; i++) {
		struct fbr_way *w = fbr_way_at(h, i);

		if (w && fbr_way_is(w, k))
			*(volatile __u64 *)&w->granted = 0;
	}
}

/* Grants a lease. The place of a flow whose lease lasts is not taken. Whoever is not the
 * first to write grants nothing.
 */
static __always_inline void fbr_way_grant(const struct fbr_flow_key *k, const struct fbr_conf *c,
					  __u32 via, const struct fbr_step *s)
{
	__u32 h = fbr_flow_hash(k), *macs;
	struct fbr_way *w = fbr_way_at(h, 0), *other = fbr_way_at(h, 1);
	__u64 now = fbr_now();

	if (!w || !other)
		return;
	if (fbr_way_is(other, k) ||
	    (!fbr_way_is(w, k) && fbr_lease_lasts(w->granted, w->lease_len, c, now)))
		w = other;
	if ((!fbr_way_is(w, k) && fbr_lease_lasts(w->granted, w->lease_len, c, now)) ||
	    __sync_val_compare_and_swap(&w->writing, 0, 1))
		return;
	macs = (__u32 *)w->macs;
	if (!fbr_way_is(w, k) || w->via != via || w->oif != s->oif || macs[0] != s->macs[0] ||
	    macs[1] != s->macs[1] || macs[2] != s->macs[2]) {
		*(volatile __u64 *)&w->granted = 0;
		barrier();
		fbr_words_set((volatile __u64 *)&w->key, (const __u64 *)k);
		w->via = via;
		w->oif = s->oif;
		macs[0] = s->macs[0];
		macs[1] = s->macs[1];
		macs[2] = s->macs[2];
	}
	w->mtu = s->mtu;
	w->lease_len = fbr_lease_len(c, now);
	barrier();
	__sync_lock_test_and_set(&w->granted, now);
	*(volatile __u32 *)&w->writing = 0;
}

/* The last hook has got a packet that the kernel has let through, untranslated by us. It
 * came in by the device via and leaves by the hook's own, whose MTU is mtu (bytes, L3). TCP
 * that opens or closes ends the leases of both directions.
 */
__fbr_global int fbr_way_passed(struct __sk_buff *skb, const struct fbr_pkt *p, __u32 kind,
				__u32 via, __u32 mtu)
{
	if (!p)
		return 0;

	struct fbr_step s = { .oif = skb->ifindex, .mtu = mtu };
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_flow_key k;
	struct fbr_dev *u;

	if (!c || !c->lease || p->frag || p->kind == FBR_L4_NONE || p->kind == FBR_L4_ICMP_ERR)
		return 0;
	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) {
		fbr_answer_key(&k, p);
		fbr_way_key(&k, kind == FBR_WAY_OUT  ? FBR_WAY_IN
				: kind == FBR_WAY_IN ? FBR_WAY_OUT
						     : kind);
		fbr_way_end(&k);
	}
	fbr_key(&k, p);
	fbr_way_key(&k, kind);
	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) {
		fbr_way_end(&k);
		return 0;
	}
	if (!fbr_ct_leaves(skb) || fbr_ct_helped(skb) ||
	    (p->l3 && bpf_skb_load_bytes(skb, 0, s.macs, sizeof(s.macs))))
		return 0;
	fbr_way_grant(&k, c, via, &s);
	u = kind == FBR_WAY_IN ? fbr_dev_get(via) : NULL;
	if (u && !(u->flags & FBR_IP_WAYS))
		__sync_fetch_and_or((__u32 *)&u->flags, FBR_IP_WAYS);
	return 0;
}

/* Takes a packet one hop further: its TTL and its MAC addresses. */
static __always_inline bool fbr_step_frame(struct __sk_buff *skb, const struct fbr_step *s)
{
	int lowered = fbr_hop_summed(skb, ETH_HLEN);
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	fbr_ip *ip = data + ETH_HLEN;

	if (lowered < 0 || (void *)(ip + 1) > data_end)
		return false;
	if (!lowered)
		fbr_next_hop(ip, 0);
	((__u32 *)data)[0] = s->macs[0];
	((__u32 *)data)[1] = s->macs[1];
	((__u32 *)data)[2] = s->macs[2];
	return true;
}

/* Sends a packet of the port p with the key k out by the uplink that it has a way by.
 * l4_len is the length of its L4 header. Returns the uplink's ifindex; 0: it has none, and the
 * packet is untouched.
 */
__fbr_global __u32 fbr_way_out(struct __sk_buff *skb, const struct fbr_dev *p,
			       const struct fbr_flow_key *packet, __u32 l4_len)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_flow_key k;
	struct fbr_step s;

	if (!p || !packet || !c)
		return 0;
	k = *packet;
	fbr_way_key(&k, FBR_WAY_OUT);
	if (!fbr_way_take(&k, p->ifindex, c, &s) ||
	    !fbr_fits(skb, ETH_HLEN, k.proto, l4_len, s.mtu) || !fbr_step_frame(skb, &s))
		return 0;
	fbr_count_rx(skb, p, FBR_FAST);
	return s.oif;
}

/* Takes a packet with the key k, from outside by the uplink u, to the port that it has a way
 * to. l2 is the length of u's L2 header. Returns the port's ifindex; 0: it has none, and the
 * packet is untouched; -1: it is half changed and must be dropped.
 */
__fbr_global int fbr_way_in(struct __sk_buff *skb, const struct fbr_dev *u,
			    const struct fbr_flow_key *packet, __u32 l4_len, __u32 l2)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_flow_key k;
	struct fbr_step s;
	struct fbr_dev *t;

	if (!u || !packet || !c)
		return 0;
	k = *packet;
	fbr_way_key(&k, FBR_WAY_IN);
	if (!fbr_way_take(&k, u->ifindex, c, &s))
		return 0;
	t = fbr_dev_get(s.oif);
	if (!t || !fbr_port_has(t, FBR_ARG(k.daddr)) || !(t->flags & FBR_DEV_PLAIN) ||
	    (t->flags & FBR_DEV_KERNEL_ROUTED) || !fbr_fits(skb, l2, k.proto, l4_len, s.mtu) ||
	    fbr_sum_pending(skb, l2 + sizeof(fbr_ip), k.proto) > FBR_SUM_OWN)
		return 0;
	fbr_count_rx(skb, u, FBR_FAST);
	/* Point of no return. The container gets a frame. */
	if ((!l2 && fbr_push_eth(skb)) || !fbr_step_frame(skb, &s))
		return -1;
	fbr_count_tx(skb, t, FBR_FAST);
	return s.oif;
}

/* Whether a frame of p's to another port t of its bridge belongs to a flow with a lease. */
static __always_inline bool fbr_way_beside(struct __sk_buff *skb, const struct fbr_dev *p,
					   const struct fbr_dev *t, const struct fbr_conf *c)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct fbr_flow_key k;
	struct fbr_step s;

	if (!fbr_fast_parse(skb, skb->len, data, data_end, ETH_HLEN, true, &k))
		return false;
	fbr_way_key(&k, FBR_WAY_BESIDE);
	return fbr_way_take(&k, p->ifindex, c, &s) && s.oif == t->ifindex;
}

#endif
