/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The parts of a new session: a slot in fbr_sess, an external port, and two entries in
 * fbr_flow.
 *
 * The reverse entry is inserted first: its key is the lock on the external tuple. The
 * external port belongs to (protocol, container, source port) and is the same for every
 * destination (RFC 4787 REQ-1). A port is shared only if none is free, or if the mapping's
 * port is already in use towards this very remote.
 */
#ifndef FBR_CLAIM_H
#define FBR_CLAIM_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "csum.h"
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
#include "session.h"
#include "socket.h"
#include "stay.h"

#define FBR_OVERLOAD_TRIES 16 /* ports tried for sharing when none is free */

/* Whether new sessions have to wait while sessions of older maps are brought over (carry.h). */
static __always_inline bool fbr_held(void)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && c->hold_until > fbr_now();
}

/* Inserts both entries. Returns 0, -EEXIST if the external tuple is taken, or another error. */
__fbr_global int fbr_pair_insert(struct fbr_new *n)
{
	if (!n)
		return -ENOENT;

	struct fbr_flow *in = fbr_flow_new(2 * n->slot + 1), *out = fbr_flow_new(2 * n->slot);
	__u8 host = n->pif ? 0 : FBR_HOST;
	bool icmp = !FBR_ICMP_PSEUDO && n->fwd.proto == FBR_ICMP;
	struct fbr_flow_key rk;
	long err;

	if (!in || !out)
		return -ENOENT;
	in->seen = out->seen = fbr_now();
	in->sess = out->sess = n->slot;
	in->no_xdp = out->no_xdp = 0;

	in->kind = FBR_IN | host;
	in->addr = n->fwd.saddr;
	in->port = n->fwd.sport;
	in->iif = 0;
	in->oif = n->pif;
	in->d_addr = fbr_addr_diff(n->ext, n->fwd.saddr);
	in->d_l4 = fbr_diff16(icmp ? 0 : in->d_addr, n->eport, n->fwd.sport);

	out->kind = FBR_OUT | host;
	out->addr = n->ext;
	out->port = n->eport;
	out->iif = n->pif;
	out->oif = fbr_new_uplink(n);
	out->d_addr = fbr_addr_diff(n->fwd.saddr, n->ext);
	out->d_l4 = fbr_diff16(icmp ? 0 : out->d_addr, n->fwd.sport, n->eport);

	fbr_reverse_key(&rk, &n->fwd, n->ext, n->eport);
	err = fbr_flow_publish(in, 2 * n->slot + 1, &rk);
	if (err)
		return err;
	err = fbr_flow_publish(out, 2 * n->slot, &n->fwd);
	if (err)
		fbr_flow_remove(2 * n->slot + 1);
	return err;
}

/* Takes a free slot of fbr_sess. Returns cfg_flows_max if there is none. */
__fbr_global __u32 fbr_slot_take(void)
{
	struct fbr_state *st = fbr_state_get();
	__u32 slot = 0;
	int i;

	if (!st)
		return cfg_flows_max;
	for (i = 0; i < 2; i++) {
		if (!bpf_map_pop_elem(&fbr_free, &slot))
			return slot;
		if (st->fresh < cfg_flows_max) {
			__u64 n = __sync_fetch_and_add(&st->fresh, 1);

			if (n < cfg_flows_max)
				return n;
		}
		if (fbr_make_room(0, 0, false) || fbr_drop_early())
			continue;
		if (!fbr_sweep_slots(st, FBR_PROBES, true) && !fbr_make_room(0, 0, true))
			break;
	}
	return bpf_map_pop_elem(&fbr_free, &slot) ? cfg_flows_max : slot;
}

/* Uses the external port of an existing binding: sets n->eport and counts one more session
 * on the port. False if there is no binding, or if somebody else on this host already talks
 * to this remote from that port.
 */
__fbr_global bool fbr_bind_reuse(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return false;

	struct fbr_bind_key bk = { .ip = n->fwd.saddr,
				   .port = n->fwd.sport,
				   .proto = n->fwd.proto };
	__u32 *bound = bpf_map_lookup_elem(&fbr_bind, &bk);
	struct fbr_nport *np;
	__u16 port;
	bool stays;

	if (!bound)
		return false;
	port = *bound;
	n->eport = bpf_htons(port);
	np = fbr_nport_get(bk.proto, port);
	if (!np)
		return false;
	stays = fbr_bind_stays(skb, n, np);
	if (!fbr_port_clear(skb, &n->fwd, FBR_ARG(n->ext), port)) {
		n->moved = true;
		return false;
	}
	if (!fbr_port_ref(np))
		return false;
	if (fbr_addr_eq(np->ip, bk.ip) && np->port == bk.port) {
		if (!stays && !fbr_addr_eq(n->ext, n->fwd.daddr))
			fbr_bind_used(np, n);
		return true;
	}
	/* The port was released and taken by another owner since the binding was read. */
	fbr_port_put(bk.proto, port);
	return false;
}

/* Makes the source of fwd the owner of a taken port, for its first session. The port
 * becomes the binding's unless there is one already.
 */
static __always_inline void fbr_port_own(struct fbr_nport *np, const struct fbr_flow_key *fwd,
					 __u32 port, fbr_addr ext, __u32 pif,
					 enum fbr_net_flags net)
{
	struct fbr_bind_key bk = { .ip = fwd->saddr, .port = fwd->sport, .proto = fwd->proto };
	struct fbr_quota *q;

	np->ip = bk.ip;
	np->port = bk.port;
	np->pif = pif;
	np->ext = ext;
	fbr_bind_leads(np, 0);
	np->used_at = 0;
	np->noted_at = 0;
	barrier();
	*(volatile __u32 *)&np->refs = 1;
	np->bound =
		!(net & FBR_NET_EDM) && !bpf_map_update_elem(&fbr_bind, &bk, &port, BPF_NOEXIST);
	q = fbr_quota_get(pif);
	if (q)
		__sync_fetch_and_add(&q->ports, 1);
}

/* Takes a new external port. It becomes the binding's unless there is one already. False if
 * no port is free.
 */
__fbr_global bool fbr_bind_new(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return false;

	__u32 port = fbr_port_take(skb, &n->fwd, FBR_ARG(n->ext), &n->moved);
	struct fbr_nport *np;

	if (port == FBR_NO_PORT)
		return false;
	np = fbr_nport_get(n->fwd.proto, port);
	if (!np)
		return false;
	n->eport = bpf_htons(port);
	fbr_port_own(np, &n->fwd, port, n->ext, n->pif, n->net);
	fbr_bind_leads(np, fbr_new_uplink(n));
	return true;
}

/* Inserts both entries. A dead session that holds the external tuple is removed. */
__fbr_global int fbr_pair_claim(struct fbr_new *n)
{
	if (!n)
		return -ENOENT;

	struct fbr_flow_key rk;
	__u32 *i;
	long err = fbr_pair_insert(n);

	if (err == -EEXIST) {
		fbr_reverse_key(&rk, &n->fwd, n->ext, n->eport);
		i = bpf_map_lookup_elem(&fbr_flow_of, &rk);
		if (i && fbr_sess_reap(*i / 2, 0, false))
			err = fbr_pair_insert(n);
	}
	return err;
}

/* Inserts both entries on a port that n owns. Gives the port back on failure. */
static __always_inline int fbr_pair_owned(struct fbr_new *n)
{
	int err = fbr_pair_claim(n);

	if (err)
		fbr_port_put(n->fwd.proto, bpf_ntohs(n->eport));
	n->owns = !err;
	return err;
}

/* Shares a port whose tuple towards this remote is unique (RFC 7857 section 3). */
__fbr_global int fbr_overload(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return -ENOENT;

	struct fbr_pool *pool = fbr_pool_get(n->fwd.proto);
	struct fbr_state *st = fbr_state_get();
	__u32 zero = 0;
	struct fbr_meta *m = bpf_map_lookup_elem(&fbr_meta, &zero);
	__u16 port;
	int i;

	for (i = 0; pool && m && i < FBR_OVERLOAD_TRIES; i++) {
		port = m->nat_first + ((__u64)fbr_random() * m->nat_count >> 32);
		n->eport = bpf_htons(port);
		if (!(pool->state[port] & FBR_PORT_OPEN) ||
		    !fbr_port_clear(skb, &n->fwd, FBR_ARG(n->ext), port))
			continue;
		if (!fbr_pair_insert(n)) {
			if (st)
				__sync_fetch_and_add(&st->overloads, 1);
			return 0;
		}
	}
	return -E2BIG;
}

#endif
