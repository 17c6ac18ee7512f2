/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Brings over the sessions of another build's maps when a layout has changed.
 *
 * Go reads the old sessions, converts them to this build's layout and hands them over one
 * by one, at the end while packets pass. Each session begins here as a packet would begin
 * it: it takes its slot, its port and its entries in the same way. So free slots, free
 * ports, quotas and bindings come out right by themselves. No session may begin between the
 * swap of the first program and the arrival of the last session (fbr_held). Otherwise a
 * packet of a session that is still missing would begin it again from another port.
 */
#ifndef FBR_CARRY_H
#define FBR_CARRY_H

#include "../include/bpf/bpf_endian.h"
#include "claim.h"
#include "create.h"
#include "device.h"
#include "extport.h"
#include "flow.h"
#include "instance.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "pool.h"
#include "queues.h"
#include "reclaim.h"
#include "scratch.h"
#include "session.h"
#include "stay.h"

/* A session as Go hands it over. The slot numbers in it are not valid here. */
struct fbr_carried {
	struct fbr_session s;
	struct fbr_flow out;
	struct fbr_flow in;
};

enum fbr_carry_result {
	FBR_CARRY_TOLD = 1, /* it exists, and now has what its packets told meanwhile */
	FBR_CARRY_MADE,
	FBR_CARRY_OTHER, /* another session has its addresses */
	FBR_CARRY_FULL,
	FBR_CARRY_LEFT, /* it does not exist and must not be created */
};

/* The bits that packets set. */
#define FBR_S_TOLD \
	(FBR_S_REPLIED | FBR_S_ASSURED | FBR_S_FIN_OUT | FBR_S_FIN_IN | FBR_S_RST | FBR_S_RST_IN)

/* Copies the entry at offset off of the request to index i, and enters it under the key k. pif
 * is its session's port: the record of an earlier layout does not say where packets come in.
 * The caller owns the slot.
 */
__fbr_global long fbr_carry_entry(struct __sk_buff *skb, __u32 off, __u32 i,
				  const struct fbr_flow_key *k, __u32 pif)
{
	const __u32 rest = offsetof(struct fbr_flow, seen);
	struct fbr_flow *f = fbr_flow_new(i);
	__u64 granted;
	long err;

	/* Without its key, which comes last, the entry is nobody's: it is filled in place. */
	_Static_assert(offsetof(struct fbr_flow, seen) == sizeof(*k) + sizeof(granted),
		       "the key and the lease come first");
	if (!f || !k || bpf_skb_load_bytes(skb, off + sizeof(*k), &granted, sizeof(granted)) ||
	    bpf_skb_load_bytes(skb, off + rest, &f->seen, sizeof(*f) - rest))
		return -ENOENT;
	f->sess = i / 2;
	if (f->kind & FBR_OUT)
		f->iif = pif;
	err = fbr_flow_publish(f, i, k);
	if (!err)
		*(volatile __u64 *)&f->granted = granted;
	return err;
}

/* Counts the session on its external port. The port's owner last sent something at seen
 * (jiffies). False if the port has another owner.
 */
__fbr_global bool fbr_carry_port(const struct fbr_session *s, __u64 seen)
{
	if (!s)
		return false;

	struct fbr_nport *np = fbr_nport_at(s->fwd.proto, s->eport);
	struct fbr_net *net = fbr_net_get(s->fwd.saddr);
	__u32 port = bpf_ntohs(s->eport);
	__u64 used_at;

	if (!np)
		return false;
	used_at = np->used_at;
	if (fbr_pool_claim(s->fwd.proto, port))
		fbr_port_own(np, &s->fwd, port, s->ext, s->pif,
			     s->pif && net ? net->flags : (enum fbr_net_flags)0);
	else if (!fbr_addr_eq(np->ip, s->fwd.saddr) || np->port != s->fwd.sport ||
		 np->pif != s->pif || !fbr_port_ref(np))
		return false;
	if (s->bits & FBR_S_OUT_ONLY)
		np->used_at = used_at > seen ? used_at : seen;
	return true;
}

/* Merges what the session's packets have told elsewhere into the session in slot. */
static __always_inline void fbr_carry_tell(struct fbr_session *have, __u32 slot, __u32 bits,
					   __u64 out_seen, __u64 in_seen)
{
	struct fbr_flow *out = fbr_flow_out(slot), *in = fbr_flow_in(slot);

	bits &= FBR_S_TOLD;
	bits |= __sync_fetch_and_or(&have->bits, bits);
	have->check_at = 0;
	fbr_half_done(have, bits);
	if ((bits & FBR_S_WAITING) && (bits & FBR_S_ASSURED))
		fbr_wait_done(have);
	if (out && out->seen < out_seen)
		out->seen = out_seen;
	if (in && in->seen < in_seen)
		in->seen = in_seen;
	if (have->fwd.proto != IPPROTO_TCP || !fbr_closed_bits(bits))
		return;
	if (out)
		fbr_sess_slow(out, slot);
	fbr_closed_push(slot, have);
}

/* Brings over the session at offset off of the request. If anew is set, a session that does
 * not exist is created.
 */
static __noinline enum fbr_carry_result fbr_carry(struct __sk_buff *skb, __u32 off, bool anew)
{
	struct fbr_state *st = fbr_state_get();
	FBR_SCRATCH(fbr_session, carried);
	struct fbr_session *have;
	__u64 out_seen, in_seen;
	struct fbr_flow_key rk;
	struct fbr_flow *f;
	__u32 slot;

	if (!st || !carried || bpf_skb_load_bytes(skb, off, carried, sizeof(*carried)) ||
	    bpf_skb_load_bytes(skb, off + offsetof(struct fbr_carried, out.seen), &out_seen,
			       sizeof(out_seen)) ||
	    bpf_skb_load_bytes(skb, off + offsetof(struct fbr_carried, in.seen), &in_seen,
			       sizeof(in_seen)))
		return FBR_CARRY_FULL;
	f = fbr_flow_get(&carried->fwd);
	if (f) {
		slot = f->sess;
		have = fbr_sess_get(slot);
		if (!have || !(f->kind & FBR_OUT) || !fbr_addr_eq(have->ext, carried->ext) ||
		    have->eport != carried->eport)
			return FBR_CARRY_OTHER;
		/* The container has answered its client meanwhile. */
		if (carried->isn && !have->isn)
			have->isn = carried->isn;
		fbr_carry_tell(have, slot, carried->bits, out_seen, in_seen);
		return FBR_CARRY_TOLD;
	}
	if (!anew)
		return FBR_CARRY_LEFT;
	fbr_sweep_ensure(st);
	slot = fbr_slot_take();
	have = fbr_sess_get(slot);
	if (!have)
		return FBR_CARRY_FULL;
	fbr_reverse_key(&rk, &carried->fwd, carried->ext, carried->eport);
	if (fbr_carry_entry(skb, off + offsetof(struct fbr_carried, in), 2 * slot + 1, &rk,
			    carried->pif)) {
		bpf_map_push_elem(&fbr_free, &slot, BPF_ANY);
		return FBR_CARRY_OTHER;
	}
	if (fbr_carry_entry(skb, off + offsetof(struct fbr_carried, out), 2 * slot, &carried->fwd,
			    carried->pif)) {
		fbr_flow_remove(2 * slot + 1);
		bpf_map_push_elem(&fbr_free, &slot, BPF_ANY);
		return FBR_CARRY_OTHER;
	}
	if (!(carried->bits & FBR_S_OVERLOAD)) {
		if (fbr_carry_port(carried, out_seen))
			fbr_bind_carried(carried, slot);
		else
			carried->bits |= FBR_S_OVERLOAD;
	}
	if (carried->bits & FBR_S_OVERLOAD)
		carried->bits &= ~FBR_S_PEER;
	if ((carried->bits & FBR_S_PEER) &&
	    !fbr_peer_ref(carried->fwd.proto, bpf_ntohs(carried->eport),
			  FBR_ARG(carried->fwd.daddr)))
		carried->bits &= ~FBR_S_PEER;
	/* These two belong to the slot, not to the session. */
	carried->state = have->state;
	carried->queued = have->queued;
	*have = *carried;
	fbr_sess_begin(have, slot, st);
	fbr_carry_tell(have, slot, carried->bits, out_seen, in_seen);
	return FBR_CARRY_MADE;
}

#endif
