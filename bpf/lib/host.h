/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets of the host, or of a neighbour NAT with the same address, whose source port is in
 * the NAT range.
 */
#ifndef FBR_HOST_H
#define FBR_HOST_H

#include "claim.h"
#include "clock.h"
#include "create.h"
#include "device.h"
#include "extport.h"
#include "flow.h"
#include "nat.h"
#include "nport.h"
#include "out.h"
#include "parse.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "session.h"
#include "track.h"

/* Ends the session of the entry under k. */
static __always_inline void fbr_flow_end(const struct fbr_flow_key *k)
{
	struct fbr_flow *f = fbr_flow_get(k);
	struct fbr_session *s = f ? fbr_sess_get(f->sess) : NULL;
	__u32 slot;

	if (!s)
		return;
	slot = f->sess;
	if (fbr_sess_claim(s, fbr_sess_state(s)))
		fbr_sess_free(slot);
}

/* Whether a session that uses the tuple of a packet of the host or a neighbour moves to
 * another port. An established TCP connection cannot move, and a published port has no
 * other port. Nothing gives way to a RST.
 */
static __always_inline bool fbr_gives_way(const struct fbr_session *s, const struct fbr_pkt *p)
{
	__u32 bits = s->bits;

	if ((bits & (FBR_S_HOST | FBR_S_PUBLISHED)) || (p->tcp_flags & TCP_RST))
		return false;
	return p->proto != IPPROTO_TCP || !fbr_established(bits) || fbr_closed_bits(bits);
}

/* Moves a container's session to another external port. n is scratch space. A session that
 * is over only ends.
 */
static __always_inline void fbr_move(struct __sk_buff *skb, struct fbr_new *n, __u32 slot,
				     struct fbr_session *s)
{
	__u32 state = fbr_sess_state(s);
	/* A session begun outside has no other port. */
	bool over = fbr_closed_bits(s->bits) || (s->bits & FBR_S_INBOUND);
	struct fbr_net *net;

	n->fwd = s->fwd;
	n->ext = s->ext;
	n->pif = s->pif;
	n->payer = s->payer;
	fbr_new_leaves(n, fbr_slot_leads(slot));
	if (!fbr_sess_claim(s, state))
		return;
	fbr_sess_free(slot);
	net = fbr_net_get(n->fwd.saddr);
	if (over || !net || !fbr_dev_get(n->pif))
		return;
	n->net = net->flags;
	fbr_sess_create(skb, n);
}

/* Handles a packet of the host, or of a neighbour NAT with the same address, whose source
 * port is in our range. Notes the port, so that the allocator takes it last. A flow of ours
 * with the same tuple moves to another port. If it cannot move, the packet itself gets
 * another port (a session of kind host), as the kernel's NAT would do. Returns FBR_NONE or
 * the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_snat_host(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_UNSUPPORTED;

	__u64 now = fbr_now();
	struct fbr_flow_key rk;
	FBR_SCRATCH(fbr_flow_key, key);
	struct fbr_session *s;
	struct fbr_nport *np;
	struct fbr_flow *f;

	if (!key)
		return FBR_UNSUPPORTED;
	fbr_key(key, p);
	f = fbr_flow_live(skb, NULL, key, 0, FBR_ARG(FBR_NO_ADDR));
	if (!f) {
		FBR_SCRATCH_ZERO(fbr_new, new);
		bool free, moves;

		if (!new)
			return FBR_UNSUPPORTED;
		new->fwd = *key;
		new->ext = p->saddr;
		new->moved = true;
		fbr_reverse_key(&rk, key, p->saddr, p->sport);
		f = fbr_flow_get(&rk);
		free = !f || !(f->kind & FBR_IN) || !fbr_sess_lasts(f);
		s = free ? NULL : fbr_sess_get(f->sess);
		moves = s && fbr_gives_way(s, p);
		if (free || moves) {
			np = fbr_nport_at(p->proto, p->sport);
			if (np && !(p->tcp_flags & TCP_RST))
				np->noted_at = now;
			if (moves)
				fbr_move(skb, new, f->sess, s);
			return FBR_NONE;
		}
		fbr_sess_create(skb, new);
		f = fbr_flow_get(key);
		if (!f) {
			/* No room: the host goes first, and our flow gives way. */
			fbr_flow_end(&rk);
			return FBR_NONE;
		}
	}
	fbr_sess_track(skb, f->sess, p, true);
	f->seen = now;
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, true, FBR_ARG(f->addr), f->port) ? FBR_UNSUPPORTED
									: FBR_NONE;
}

#endif
