/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a hairpinned packet (hairpin.h) is recognised after the kernel has routed it. */
#ifndef FBR_HAIR_H
#define FBR_HAIR_H

#include "config.h"
#include "frag.h"
#include "nat.h"
#include "parse.h"
#include "session.h"

#define FBR_HAIR_HINTS 4096                  /* of fbr_hair */
#define FBR_HAIR_SLOT  (FBR_FLOWS_LIMIT - 1) /* mask, in skb->hash */

_Static_assert((FBR_FLOWS_LIMIT & FBR_HAIR_SLOT) == 0, "a mask needs a power of two");

/* A hint: the sender's slot of a hairpinned packet, by a hash of the packet as the kernel
 * routes it. What is read here is compared with the session.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_HAIR_HINTS);
	__type(key, __u32);
	__type(value, __u32);
} fbr_hair SEC(".maps");

static __always_inline void fbr_hair_tag(struct __sk_buff *skb, __u32 slot)
{
	bpf_set_hash(skb, (cfg_mark & ~FBR_HAIR_SLOT) | (slot & FBR_HAIR_SLOT));
}

static __always_inline bool fbr_hair_tagged(__u32 hash)
{
	return cfg_mark && !((hash ^ cfg_mark) & ~FBR_HAIR_SLOT);
}

/* The session in slot if it is the sender's session of a hairpinned packet from saddr, or NULL. */
static __always_inline struct fbr_session *fbr_hair_sender(__u32 slot, fbr_addr saddr)
{
	struct fbr_session *s = fbr_sess_get(slot);

	return s && fbr_is_live(fbr_sess_state(s)) && fbr_addr_eq(s->fwd.saddr, saddr) &&
			       fbr_addr_eq(s->ext, s->fwd.daddr)
		       ? s
		       : NULL;
}

/* The sender's session of a hairpinned packet with this hash and source, or NULL. */
static __always_inline struct fbr_session *fbr_hair_session(__u32 hash, fbr_addr saddr)
{
	return fbr_hair_tagged(hash) ? fbr_hair_sender(hash & FBR_HAIR_SLOT, saddr) : NULL;
}

/* The place in fbr_hair for the sender's slot of packet p, which the kernel routes to
 * daddr:dport.
 */
static __always_inline __u32 *fbr_hair_hint(const struct fbr_pkt *p, fbr_addr daddr, __be16 dport)
{
	__u32 i = fbr_frag_hash(p->saddr, daddr, (__u32)p->sport << 16 | dport) % FBR_HAIR_HINTS;

	return bpf_map_lookup_elem(&fbr_hair, &i);
}

/* The key of a receiver's inbound entry: both addresses are the host's. */
static __always_inline void fbr_hair_key(struct fbr_flow_key *k, fbr_addr host, __be16 sport,
					 __be16 dport, __u8 proto)
{
	fbr_key_fill(k, host, host, sport, dport, proto);
}

#endif
