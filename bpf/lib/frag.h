/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments through the NAT, always on the kernel's path.
 *
 * Only the first fragment of a datagram has the ports. It leaves what the others need in
 * fbr_frag. A program cannot hold a packet back, so the first fragment must come first.
 *
 * Outbound: the kernel reassembles and fragments again whatever it forwards (fbr_defrag),
 * so fragments leave in order.
 *
 * Inbound: the kernel reassembles only where it delivers, after every hook that could
 * translate. So fbr_uplink_in sends these fragments to a namespace of the instance that
 * only forwards them back (FBR_DEV_FRAGS). There fbr_frag_in translates them, restores the
 * TTL and lets them arrive again at the uplink they came by.
 *
 * Between containers by an address of the host (hairpin.h) there is no such detour: the
 * fragments must leave their sender in order.
 *
 * The first fragment makes an entry of fbr_frag, and the last one deletes it. If the last
 * one is lost, the entry expires after FBR_FRAG_SECS, and whoever needs room deletes it: it
 * looks at the slots in turn. Each slot belongs to one entry. No live entry is given up.
 */
#ifndef FBR_FRAG_H
#define FBR_FRAG_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
#include "device.h"
#include "instance.h"
#include "parse.h"
#include "reason.h"
#include "rewrite.h"

#define FBR_FRAGS_MAX   4096 /* datagrams at once */
#define FBR_FRAG_LANES  4096 /* of fbr_frag_id and fbr_frag_via */
#define FBR_FRAG_SECS   2    /* RFC 6146 section 4 */
#define FBR_FRAG_PROBES 64   /* slots looked at to find a free one */
#define FBR_FRAG_QUOTA  (FBR_FRAGS_MAX / 8)

_Static_assert((FBR_FRAGS_MAX & (FBR_FRAGS_MAX - 1)) == 0, "fbr_state.frag_hand wraps around");

/* A datagram whose fragments are passing, as on the wire before rewriting */
struct fbr_frag_key {
	fbr_addr saddr;
	fbr_addr daddr;
	fbr_ip_id id;
	__u8 pad[sizeof(fbr_ip_id) - sizeof(__be16)];
	__u8 proto;
	__u8 in; /* from outside, or to an address of the host */
};

/* What the first fragment has found out */
struct fbr_frag {
	__u64 until;   /* jiffies */
	fbr_addr addr; /* the new source (out) or destination (in) */
	fbr_ip_id id;  /* the new one */
	fbr_ip_id pad;
	__u32 pif;  /* the container's port */
	__u32 slot; /* index into fbr_frag_slot */
};

/* The datagrams whose fragments are passing, and their keys by slot, so that expired ones
 * can be found.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_FRAGS_MAX);
	__type(key, struct fbr_frag_key);
	__type(value, struct fbr_frag);
} fbr_frag SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_FRAGS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_frag_key);
} fbr_frag_slot SEC(".maps");

/* The next IP id of outbound fragments, by a hash of addresses and protocol. The uplink
 * that inbound fragments came by, by a hash of their datagram.
 */
struct fbr_frag_lanes {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_FRAG_LANES);
	__type(key, __u32);
	__type(value, __u32);
};

struct fbr_frag_lanes fbr_frag_id SEC(".maps");
struct fbr_frag_lanes fbr_frag_via SEC(".maps");

static __always_inline __u32 fbr_frag_mix(__u32 h, __u32 v)
{
	h = (h ^ v) * 0x9e3779b1;
	return h ^ (h >> 15);
}

/* Seeded with the instance's secret, so that nobody outside can predict it. */
static __always_inline __u32 fbr_frag_hash(fbr_addr saddr, fbr_addr daddr, __u32 more)
{
	return fbr_frag_mix(
		fbr_frag_mix(fbr_frag_mix(cfg_mark, fbr_addr_word(saddr)), fbr_addr_word(daddr)),
		more);
}

static __always_inline __u32 *fbr_frag_via_get(const struct fbr_pkt *p)
{
	/* By IPv6, what the other namespace fragments again has another id. */
	__u32 id = FBR_AF == 4 ? (__u32)p->id << 8 : 0;
	__u32 i = fbr_frag_hash(p->saddr, p->daddr, id | fbr_frag_proto(p)) % FBR_FRAG_LANES;

	return bpf_map_lookup_elem(&fbr_frag_via, &i);
}

/* A new IP id for a datagram. Datagrams of several containers with the same external source
 * address must not share an id (RFC 6864 section 5.3.1). A single counter for the whole
 * instance would wrap too soon, and would show everybody how busy the instance is.
 */
static __always_inline fbr_ip_id fbr_frag_new_id(fbr_addr saddr, fbr_addr daddr, __u8 proto,
						 fbr_ip_id old)
{
	if (FBR_AF == 6) /* the host's own ids are random, and new ones where it fragments anew */
		return old;

	__u32 h = fbr_frag_hash(saddr, daddr, proto), i = h % FBR_FRAG_LANES;
	__u32 *next = bpf_map_lookup_elem(&fbr_frag_id, &i);

	return next ? bpf_htons((h >> 16) + __sync_fetch_and_add(next, 1)) : 0;
}

/* The key of the datagram of a fragment that is not rewritten yet. */
static __always_inline struct fbr_frag_key fbr_frag_key_of(const struct fbr_pkt *p, bool in)
{
	return (struct fbr_frag_key){ .saddr = p->saddr,
				      .daddr = p->daddr,
				      .id = p->id,
				      .proto = fbr_frag_proto(p),
				      .in = in };
}

/* Deletes the entry of a datagram. */
static __always_inline void fbr_frag_forget(const struct fbr_frag_key *k, struct fbr_frag *f)
{
	struct fbr_quota *q = fbr_quota_get(f->pif);

	if (!bpf_map_delete_elem(&fbr_frag, k) && q && q->frags)
		fbr_atomic_dec(&q->frags);
}

struct fbr_frag_walk {
	__u32 slot;
	__u32 all; /* do not stop at the first free slot */
	bool found;
};

/* Looks at the next slot, and frees it if its entry has expired. */
static long fbr_frag_probe(__u64 i, struct fbr_frag_walk *w)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_frag_key *key, k;
	struct fbr_frag *f;
	__u32 slot;

	if (!st)
		return 1;
	slot = __sync_fetch_and_add(&st->frag_hand, 1) % FBR_FRAGS_MAX;
	key = bpf_map_lookup_elem(&fbr_frag_slot, &slot);
	if (!key)
		return 1;
	k = *key;
	f = bpf_map_lookup_elem(&fbr_frag, &k);
	if (f && f->slot == slot) {
		if (f->until > fbr_now())
			return 0;
		fbr_frag_forget(&k, f);
	}
	w->slot = slot;
	w->found = true;
	return w->all ? 0 : 1;
}

/* Enters a datagram. v has neither slot nor time yet. False if there is no room, or if the
 * container has used its share.
 */
__fbr_global bool fbr_frag_track(const struct fbr_frag_key *k, struct fbr_frag *v)
{
	if (!k || !v)
		return false;

	struct fbr_quota *q = fbr_quota_get(v->pif);
	struct fbr_frag_walk w = {};
	struct fbr_frag_key key = *k, *slot;
	struct fbr_frag *old = bpf_map_lookup_elem(&fbr_frag, &key);

	if (old) /* the last fragment of an earlier datagram was lost */
		fbr_frag_forget(&key, old);
	/* Entries of the container itself may have expired. */
	w.all = q && q->frags >= FBR_FRAG_QUOTA;
	bpf_loop(FBR_FRAG_PROBES, fbr_frag_probe, &w, 0);
	if (q && q->frags >= FBR_FRAG_QUOTA)
		return false;
	slot = w.found ? bpf_map_lookup_elem(&fbr_frag_slot, &w.slot) : NULL;
	if (!slot)
		return false;
	*slot = key;
	v->slot = w.slot;
	v->until = fbr_now() + FBR_FRAG_SECS * cfg_hz;
	if (bpf_map_update_elem(&fbr_frag, &key, v, BPF_NOEXIST))
		return false;
	if (q)
		__sync_fetch_and_add(&q->frags, 1);
	return true;
}

/* Translates a fragment that is not the first. Returns FBR_NONE or the reason to drop it.
 * Returns FBR_NOT_OURS for one from outside whose datagram is unknown; it is untouched.
 */
__fbr_global enum fbr_reason fbr_frag_later(struct __sk_buff *skb, const struct fbr_pkt *p, bool in)
{
	if (!p)
		return FBR_UNSUPPORTED;

	struct fbr_frag_key k = fbr_frag_key_of(p, in);
	struct fbr_frag *f = bpf_map_lookup_elem(&fbr_frag, &k), v;

	if (!f || f->until <= fbr_now())
		return in ? FBR_NOT_OURS : FBR_FRAGMENT;
	v = *f;
	/* The entry may have been deleted, and may be another datagram's by now. */
	barrier();
	if (bpf_map_lookup_elem(&fbr_frag, &k) != f)
		return FBR_FRAGMENT;
	if (!(p->frag & FBR_FRAG_MORE))
		fbr_frag_forget(&k, f);
	/* Point of no return. */
	if (fbr_rewrite_outer(skb, p->l3, 0, !in, in ? p->daddr : p->saddr, v.addr) ||
	    fbr_rewrite_id(skb, p->l3, p->id, v.id))
		return FBR_UNSUPPORTED;
	return FBR_NONE;
}

/* Gives the first fragment of a container's datagram its new id, and enters the datagram.
 * Its source was just translated, or with hairpin its destination. p is as it was before.
 */
__fbr_global enum fbr_reason fbr_frag_first(struct __sk_buff *skb, const struct fbr_pkt *p,
					    const struct fbr_dev *port, bool hairpin)
{
	if (!p || !port)
		return FBR_UNSUPPORTED;

	struct fbr_frag_key k = fbr_frag_key_of(p, hairpin);
	struct fbr_frag v = { .pif = port->ifindex };

	if (bpf_skb_load_bytes(skb, fbr_addr_at(p->l3, !hairpin), &v.addr, sizeof(v.addr)))
		return FBR_UNSUPPORTED;
	/* By the addresses that its receiver will see. */
	v.id = hairpin ? fbr_frag_new_id(p->daddr, v.addr, p->proto, p->id)
		       : fbr_frag_new_id(v.addr, p->daddr, p->proto, p->id);
	if (!fbr_frag_track(&k, &v))
		return FBR_FRAGMENT;
	return fbr_rewrite_id(skb, p->l3, p->id, v.id) ? FBR_UNSUPPORTED : FBR_NONE;
}

#endif
