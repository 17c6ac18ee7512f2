/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* External ports: who owns which, and which to take next.
 *
 * A port is taken from the pool of free ports (pool.h). refs counts the sessions that use
 * it. Whoever brings refs to 0 gives the port back. In this header ports are in host byte
 * order unless their type says otherwise.
 */
#ifndef FBR_NPORT_H
#define FBR_NPORT_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "device.h"
#include "extport.h"
#include "instance.h"
#include "nat.h"
#include "pool.h"
#include "socket.h"

#define FBR_PORT_LOOKS  512 /* free ports looked at by one allocation: each costs two lookups */
#define FBR_PORT_PREFER 6   /* the first of these, for which noted ports are passed over */
#define FBR_REF_TRIES   8   /* attempts to count one more session on a binding */
#define FBR_PORT_AGAIN  0xfffffffe /* look at another one */

/* Whether a port is in the range of external ports, as it is or has been. */
static __always_inline bool fbr_in_range(const struct fbr_conf *c, __be16 port)
{
	return (__u32)bpf_ntohs(port) - c->nat_first < c->nat_count;
}

/* The index into fbr_nport. */
static __always_inline __u32 fbr_nport_index(__u8 proto, __u16 port)
{
	return fbr_class(proto) * FBR_PORTS + port;
}

static __always_inline struct fbr_nport *fbr_nport_get(__u8 proto, __u16 port)
{
	__u32 i = fbr_nport_index(proto, port);

	return bpf_map_lookup_elem(&fbr_nport, &i);
}

/* The same for a port of a packet. NULL if it is not in the range. */
static __always_inline struct fbr_nport *fbr_nport_at(__u8 proto, __be16 port)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && fbr_in_range(c, port) ? fbr_nport_get(proto, bpf_ntohs(port)) : NULL;
}

/* Whether a neighbour was seen using the port less than the hold time ago. */
static __always_inline bool fbr_port_noted(const struct fbr_nport *np, __u64 now)
{
	return np->noted_at && now - np->noted_at < (__u64)cfg_to_hold * cfg_hz;
}

/* Whether the port was given back less than the hold time ago. */
static __always_inline bool fbr_port_rests(const struct fbr_nport *np, __u64 now)
{
	return np->used_at && now - np->used_at < (__u64)cfg_to_hold * cfg_hz;
}

/* Ripens two ports for each one that is taken, so that every released port gets its turn. */
static __always_inline void fbr_ports_ripen(struct fbr_pool *pool, __u8 proto, __u64 now)
{
	int i;

	for (i = 0; i < 2; i++) {
		__u32 ripe = *(volatile __u32 *)&pool->ripe;
		struct fbr_nport *np;

		if (ripe == *(volatile __u32 *)&pool->tail)
			return;
		np = fbr_nport_get(proto, pool->ring[(__u16)ripe]);
		if (!np || fbr_port_rests(np, now))
			return;
		fbr_pool_ripen(pool, ripe);
	}
}

struct fbr_port_search {
	struct __sk_buff *skb;
	struct fbr_flow_key *fwd;
	fbr_addr_arg ext;
	__u32 end; /* end of the ports that were free when the search began */
	__u32 looked;
	__u32 port; /* the port found, or FBR_NO_PORT */
};

/* Draws a port and checks it. Returns the port, taken; FBR_PORT_AGAIN if it will not do; or
 * FBR_NO_PORT if all have been looked at.
 */
static __always_inline __u32 fbr_port_next(struct fbr_port_search *s)
{
	__u8 proto = s->fwd->proto;
	__u32 port = fbr_pool_draw(proto, s->end);
	struct fbr_nport *np;

	if (port == FBR_NO_PORT)
		return port;
	np = fbr_nport_get(proto, port);
	if (s->looked < FBR_PORT_PREFER && np && fbr_port_noted(np, fbr_now())) {
		fbr_pool_put(proto, port, true); /* perhaps later */
		return FBR_PORT_AGAIN;
	}
	if (!fbr_port_clear(s->skb, s->fwd, s->ext, port)) {
		fbr_pool_put(proto, port, false);
		return FBR_PORT_AGAIN;
	}
	return port;
}

static long fbr_port_look(__u64 i, struct fbr_port_search *s)
{
	__u32 port = fbr_port_next(s);

	if (port == FBR_NO_PORT)
		return 1;
	/* Atomic, so that the verifier does not track the count. */
	__sync_fetch_and_add(&s->looked, 1);
	if (port == FBR_PORT_AGAIN)
		return 0;
	s->port = port;
	return 1;
}

/* Takes a free external port for fwd. Prefers fwd's own source port, unless that is on hold
 * after another container's use. Otherwise draws one at random, ports noted for a neighbour
 * last. Never takes a port that a listener has, or another connection to the same remote.
 * Sets *moved if that is why fwd does not get its own. Returns the port, taken, or
 * FBR_NO_PORT. The caller writes the owner.
 */
static __always_inline __u32 fbr_port_take(struct __sk_buff *skb, struct fbr_flow_key *fwd,
					   fbr_addr_arg ext, bool *moved)
{
	__u16 own = bpf_ntohs(fwd->sport);
	struct fbr_nport *np = fbr_nport_get(fwd->proto, own);
	struct fbr_port_search s = { .skb = skb, .fwd = fwd, .ext = ext, .port = FBR_NO_PORT };
	struct fbr_pool *pool = fbr_pool_get(fwd->proto);
	struct fbr_state *st = fbr_state_get();
	__u64 now = fbr_now();

	if (!st || !pool || !np)
		return FBR_NO_PORT;
	fbr_ports_ripen(pool, fwd->proto, now);
	if (!(!fbr_addr_eq(np->ip, fwd->saddr) && fbr_port_rests(np, now)) &&
	    fbr_pool_take(fwd->proto, own)) {
		if (!fbr_port_noted(np, now) && fbr_port_clear(skb, fwd, ext, own)) {
			__sync_fetch_and_add(&st->tries[1], 1);
			return own;
		}
		fbr_pool_put(fwd->proto, own, true);
		*moved = true;
	}
	s.end = *(volatile __u32 *)&pool->tail;
	bpf_loop(FBR_PORT_LOOKS, fbr_port_look, &s, 0);
	if (s.port == FBR_NO_PORT || s.looked > FBR_PORT_TRIES)
		s.looked = 0;
	__sync_fetch_and_add(&st->tries[s.looked], 1);
	return s.port;
}

/* Counts one more session on a binding's port. False if the port is just being released. */
static __always_inline bool fbr_port_ref(struct fbr_nport *np)
{
	int i;

	for (i = 0; i < FBR_REF_TRIES; i++) {
		__u32 old = *(volatile __u32 *)&np->refs;

		if (!old)
			return false;
		if (__sync_val_compare_and_swap(&np->refs, old, old + 1) == old)
			return true;
	}
	return false;
}

/* Counts one more session between the port and a remote address. If there is no room, the
 * session is not counted, and only its own remote may answer.
 */
__fbr_global bool fbr_peer_ref(__u8 proto, __u32 port, fbr_addr_arg addr)
{
	if (!FBR_GIVEN(addr))
		return false;

	struct fbr_peer_key k = { .nport = fbr_nport_index(proto, port), .addr = FBR_ADDR(addr) };
	__u32 one = 1, *n;
	int i;

	for (i = 0; i < FBR_REF_TRIES; i++) {
		__u32 old;

		n = bpf_map_lookup_elem(&fbr_peer, &k);
		if (!n) {
			if (!bpf_map_update_elem(&fbr_peer, &k, &one, BPF_NOEXIST))
				return true;
			continue;
		}
		old = *(volatile __u32 *)n;
		/* 0: another CPU is about to delete it. */
		if (old && __sync_val_compare_and_swap(n, old, old + 1) == old)
			return true;
	}
	return false;
}

static __always_inline void fbr_peer_put(__u8 proto, __u16 port, fbr_addr addr)
{
	struct fbr_peer_key k = { .nport = fbr_nport_index(proto, port), .addr = addr };
	__u32 *n = bpf_map_lookup_elem(&fbr_peer, &k);

	if (n && __sync_fetch_and_add(n, (__u32)-1) == 1)
		bpf_map_delete_elem(&fbr_peer, &k);
}

/* Takes one session off a port; the last one releases it. */
__fbr_global6 int fbr_port_put(__u8 proto, __u16 port)
{
	struct fbr_nport *np = fbr_nport_get(proto, port);
	struct fbr_quota *q;

	if (!np || __sync_fetch_and_add(&np->refs, (__u32)-1) != 1)
		return 0;
	if (np->bound) {
		struct fbr_bind_key k = { .ip = np->ip, .port = np->port, .proto = proto };

		bpf_map_delete_elem(&fbr_bind, &k);
		np->bound = 0;
	}
	q = fbr_quota_get(np->pif);
	if (q)
		fbr_atomic_dec(&q->ports);
	np->used_at = fbr_now();
	fbr_pool_put(proto, port, false);
	return 0;
}

/* The number of external ports that one device may hold: a fifth is left to the others. */
static __always_inline __u32 fbr_ports_quota(const struct fbr_pool *pool)
{
	return cfg_ports_quota ?: pool->open - pool->open / 5;
}

#endif
