/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which external ports are free, and which of them comes next.
 *
 * The free ports of a protocol are in a ring: first those whose hold is over (head to
 * ripe), then the others in the order of their release (ripe to tail). The next port is
 * drawn at random, so that somebody who knows what was released cannot predict it. It is
 * drawn from the ports whose hold is over. If these are fewer than half of all free ports,
 * it is drawn from the half that was released first. So the hold of RFC 6888 REQ-8 is kept
 * while ports are to spare, and every draw is from at least half of the free ports. The
 * first port of the ring moves to the place of the one taken out. So every operation is
 * O(1), and "empty" is exact.
 *
 * The counters run freely; modulo the size of the ring they are places. Ports are in host
 * byte order.
 */
#ifndef FBR_POOL_H
#define FBR_POOL_H

#include "clock.h"
#include "extport.h"

#define FBR_NO_PORT 0xffffffff

static __always_inline __u32 fbr_class(__u8 proto)
{
	return proto == IPPROTO_TCP   ? FBR_CLASS_TCP
	       : proto == IPPROTO_UDP ? FBR_CLASS_UDP
				      : FBR_CLASS_ICMP;
}

static __always_inline struct fbr_pool *fbr_pool_of(__u32 class)
{
	return bpf_map_lookup_elem(&fbr_pool, &class);
}

static __always_inline struct fbr_pool *fbr_pool_get(__u8 proto)
{
	return fbr_pool_of(fbr_class(proto));
}

/* Functions with "locked" in their names are called with the pool's lock held. */

static __always_inline void fbr_pool_locked_remove(struct fbr_pool *pool, __u16 place)
{
	__u16 port = pool->ring[place], first = pool->ring[(__u16)pool->head];

	pool->ring[place] = first;
	pool->at[first] = place;
	pool->state[port] &= ~FBR_PORT_FREE;
	pool->head++;
	if ((__s32)(pool->ripe - pool->head) < 0)
		pool->ripe = pool->head;
}

/* Enters a port among those whose hold is over. */
static __always_inline void fbr_pool_locked_first(struct fbr_pool *pool, __u16 port)
{
	__u16 place = --pool->head;

	pool->ring[place] = port;
	pool->at[port] = place;
	pool->state[port] |= FBR_PORT_FREE;
}

/* Enters a port that has just been released. */
static __always_inline void fbr_pool_locked_last(struct fbr_pool *pool, __u16 port)
{
	__u16 place = pool->tail++;

	pool->ring[place] = port;
	pool->at[port] = place;
	pool->state[port] |= FBR_PORT_FREE;
}

/* Draws a free port from those before end (an earlier value of pool->tail). Returns the
 * port, taken, or FBR_NO_PORT if there is none.
 */
__fbr_global __u32 fbr_pool_draw(__u8 proto, __u32 end)
{
	struct fbr_pool *pool = fbr_pool_get(proto);
	__u32 chance = fbr_random(), free, window, port = FBR_NO_PORT;

	if (!pool)
		return FBR_NO_PORT;
	bpf_spin_lock(&pool->lock);
	free = pool->tail - pool->head;
	window = pool->ripe - pool->head;
	if (window < (free + 1) / 2)
		window = (free + 1) / 2;
	if ((__s32)(end - pool->head) < (__s32)window)
		window = (__s32)(end - pool->head) > 0 ? end - pool->head : 0;
	if (window) {
		__u16 place = pool->head + ((__u64)chance * window >> 32);

		port = pool->ring[place];
		fbr_pool_locked_remove(pool, place);
		pool->state[(__u16)port] |= FBR_PORT_TAKEN;
	}
	bpf_spin_unlock(&pool->lock);
	return port;
}

/* Takes this port if it is free. */
__fbr_global bool fbr_pool_take(__u8 proto, __u32 number)
{
	struct fbr_pool *pool = fbr_pool_get(proto);
	__u16 port = number; /* the verifier must see the cut */
	bool free;

	if (!pool)
		return false;
	bpf_spin_lock(&pool->lock);
	free = pool->state[port] & FBR_PORT_FREE;
	if (free) {
		fbr_pool_locked_remove(pool, pool->at[port]);
		pool->state[port] |= FBR_PORT_TAKEN;
	}
	bpf_spin_unlock(&pool->lock);
	return free;
}

/* Takes this port for a mapping that already has it. The port may be closed to new mappings. */
__fbr_global bool fbr_pool_claim(__u8 proto, __u32 number)
{
	struct fbr_pool *pool = fbr_pool_get(proto);
	__u16 port = number;
	__u8 state;

	if (!pool)
		return false;
	bpf_spin_lock(&pool->lock);
	state = pool->state[port];
	if (state & FBR_PORT_FREE)
		fbr_pool_locked_remove(pool, pool->at[port]);
	pool->state[port] |= FBR_PORT_TAKEN;
	bpf_spin_unlock(&pool->lock);
	return !(state & FBR_PORT_TAKEN);
}

/* Gives a taken port back. fresh: nobody has used it, so there is no hold. */
static __always_inline void fbr_pool_put(__u8 proto, __u32 number, bool fresh)
{
	struct fbr_pool *pool = fbr_pool_get(proto);
	__u16 port;

	if (!pool)
		return;
	barrier_var(number); /* else the compiler drops the bounds that the verifier needs */
	port = number;
	bpf_spin_lock(&pool->lock);
	pool->state[port] &= ~FBR_PORT_TAKEN;
	if (pool->state[port] & FBR_PORT_OPEN) {
		if (fresh)
			fbr_pool_locked_first(pool, port);
		else
			fbr_pool_locked_last(pool, port);
	}
	bpf_spin_unlock(&pool->lock);
}

/* Opens a port to new mappings, or closes it. A mapping that has it keeps it. */
static __always_inline void fbr_pool_set(struct fbr_pool *pool, __u16 port, bool open)
{
	__u8 state;

	bpf_spin_lock(&pool->lock);
	state = pool->state[port];
	if (open && !(state & FBR_PORT_OPEN)) {
		pool->open++;
		pool->state[port] |= FBR_PORT_OPEN;
		if (!(state & FBR_PORT_TAKEN))
			fbr_pool_locked_first(pool, port);
	} else if (!open && (state & FBR_PORT_OPEN)) {
		pool->open--;
		pool->state[port] &= ~FBR_PORT_OPEN;
		if (state & FBR_PORT_FREE)
			fbr_pool_locked_remove(pool, pool->at[port]);
	}
	bpf_spin_unlock(&pool->lock);
}

/* Ends the hold of the port that was released first. */
static __always_inline void fbr_pool_ripen(struct fbr_pool *pool, __u32 ripe)
{
	bpf_spin_lock(&pool->lock);
	if (pool->ripe == ripe && ripe != pool->tail)
		pool->ripe++;
	bpf_spin_unlock(&pool->lock);
}

#endif
