/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Life and death of a session: TCP state and expiry.
 *
 * Nothing here needs a process. A packet that finds an expired session treats it as a miss.
 * Its memory comes back through the sweep timer, through whoever needs the slot, or through
 * a packet that wants the same flow. Whoever deletes a session claims it first (FBR_LIVE ->
 * FBR_DYING by compare-and-swap). The sweep waits FBR_GRACE seconds after expiry: entries
 * are reused at once, and a CPU may still hold a pointer.
 */
#ifndef FBR_SESSION_H
#define FBR_SESSION_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "device.h"
#include "flow.h"
#include "instance.h"
#include "nat.h"
#include "nport.h"

#define FBR_GRACE 2 /* seconds between expiry and reclaim */

static __always_inline bool fbr_both_fins(__u32 bits)
{
	const __u32 both = FBR_S_FIN_OUT | FBR_S_FIN_IN;

	return (bits & both) == both;
}

static __always_inline bool fbr_closed_bits(__u32 bits)
{
	return (bits & (FBR_S_RST | FBR_S_RST_IN)) || fbr_both_fins(bits);
}

/* Whether only a RST from outside has closed it. Nobody here can judge that RST's sequence
 * number, so the connection may still live.
 */
static __always_inline bool fbr_doubted_bits(__u32 bits)
{
	return (bits & FBR_S_RST_IN) && !(bits & FBR_S_RST) && !fbr_both_fins(bits);
}

static __always_inline bool fbr_established(__u32 bits)
{
	const __u32 both = FBR_S_REPLIED | FBR_S_ASSURED;

	return (bits & both) == both;
}

/* The number of seconds that a session lives after its last packet. */
static __always_inline __u32 fbr_timeout(__u8 proto, __be16 rport, __u32 bits)
{
	switch (proto) {
	case IPPROTO_TCP:
		if (fbr_closed_bits(bits))
			return cfg_to_tcp_closing;
		if (!fbr_established(bits))
			return bits & FBR_S_INBOUND ? cfg_to_tcp_waiting : cfg_to_tcp_open;
		return bits & (FBR_S_FIN_OUT | FBR_S_FIN_IN) ? cfg_to_tcp_half : cfg_to_tcp;
	case IPPROTO_UDP:
		if (bits & FBR_S_ASSURED)
			return cfg_to_udp;
		if (bits & FBR_S_INBOUND)
			return bits & FBR_S_REPLIED ? cfg_to_udp_oneway : cfg_to_udp_waiting;
		if (!(bits & FBR_S_REPLIED))
			return cfg_to_udp_oneway;
		return rport == bpf_htons(53) ? cfg_to_udp_dns : cfg_to_udp;
	default:
		return cfg_to_icmp;
	}
}

static __always_inline struct fbr_session *fbr_sess_get(__u32 slot)
{
	return bpf_map_lookup_elem(&fbr_sess, &slot);
}

/* The jiffies at which the session expires unless a packet comes. */
__fbr_global __u64 fbr_sess_expires(__u32 slot)
{
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_flow *f;
	__u64 seen = 0;

	if (!s)
		return 0;
	f = fbr_flow_out(slot);
	if (f)
		seen = f->seen;
	f = s->bits & FBR_S_OUT_ONLY ? NULL : fbr_flow_in(slot);
	if (f && f->seen > seen)
		seen = f->seen;
	return seen + (__u64)fbr_timeout(s->fwd.proto, s->fwd.dport, s->bits) * cfg_hz;
}

/* Whether f's session has not expired. One recent entry is enough to tell. The other
 * direction's entry is looked up, which costs a cache miss if there are many flows, only if
 * this one has been silent for the whole timeout.
 */
__fbr_global bool fbr_sess_lasts(const struct fbr_flow *f)
{
	if (!f)
		return false;

	__u32 slot = f->sess;
	struct fbr_session *s = fbr_sess_get(slot);
	__u64 now = fbr_now();

	if (s && ((f->kind & FBR_OUT) || !(s->bits & FBR_S_OUT_ONLY)) &&
	    f->seen + (__u64)fbr_timeout(s->fwd.proto, s->fwd.dport, s->bits) * cfg_hz > now)
		return true;
	return fbr_sess_expires(slot) > now;
}

/* The port (ifindex) whose container an entry's session belongs to; 0: the host. */
static __always_inline __u32 fbr_flow_port(const struct fbr_flow *f)
{
	struct fbr_session *s = fbr_sess_get(f->sess);

	return s ? s->pif : 0;
}

static __always_inline bool fbr_is_live(__u32 state)
{
	return (state & FBR_STATE_MASK) == FBR_LIVE;
}

/* Reads the state before a session is judged, for fbr_sess_claim(). */
static __always_inline __u32 fbr_sess_state(const struct fbr_session *s)
{
	return *(volatile __u32 *)&s->state;
}

/* Claims the session for deletion if its state is still the one that was read. */
static __always_inline bool fbr_sess_claim(struct fbr_session *s, __u32 state)
{
	__u32 dying = (state & ~FBR_STATE_MASK) | FBR_DYING;

	return fbr_is_live(state) && __sync_val_compare_and_swap(&s->state, state, dying) == state;
}

/* The port whose quota the session counts in. */
static __always_inline __u32 fbr_payer(const struct fbr_session *s)
{
	return s->payer ? s->payer : s->pif;
}

/* Deletes a session that the caller has claimed. */
__fbr_global int fbr_sess_free(__u32 slot)
{
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_state *st = fbr_state_get();
	struct fbr_quota *q;

	if (!s || !st)
		return 0;
	fbr_flow_remove(2 * slot + 1);
	fbr_flow_remove(2 * slot);
	if (s->bits & FBR_S_PEER)
		fbr_peer_put(s->fwd.proto, bpf_ntohs(s->eport), s->fwd.daddr);
	if (!(s->bits & FBR_S_OVERLOAD))
		fbr_port_put(s->fwd.proto, bpf_ntohs(s->eport));
	q = fbr_quota_get(fbr_payer(s));
	if (__sync_fetch_and_and(&s->bits, ~FBR_S_WAITING) & FBR_S_WAITING)
		__sync_fetch_and_add(&st->waiting, -1);
	else if (q)
		fbr_atomic_dec(&q->sessions);
	if (q && (s->bits & FBR_S_HALF))
		fbr_atomic_dec(&q->half);
	__sync_fetch_and_add(&st->live, -1);
	barrier();
	*(volatile __u32 *)&s->state = ((s->state | FBR_STATE_MASK) + 1) | FBR_FREE;
	bpf_map_push_elem(&fbr_free, &slot, BPF_ANY);
	return 0;
}

/* Frees the session if it expired at least grace jiffies ago. pressed: a slot is wanted, so
 * a connection also goes that was idle for the 2 hours and 4 minutes that RFC 5382 REQ-5
 * grants.
 */
__fbr_global bool fbr_sess_reap(__u32 slot, __u64 grace, bool pressed)
{
	struct fbr_session *s = fbr_sess_get(slot);
	__u64 now = fbr_now(), end, check_at;
	__u32 state;
	bool owned;

	if (!s)
		return false;
	state = fbr_sess_state(s);
	if (!fbr_is_live(state))
		return false;
	owned = (s->bits & FBR_S_HOST) || fbr_dev_get(s->pif);
	check_at = s->check_at;
	if (owned && !pressed && check_at + grace > now)
		return false;
	end = fbr_sess_expires(slot);
	if (pressed && s->fwd.proto == IPPROTO_TCP &&
	    fbr_timeout(IPPROTO_TCP, 0, s->bits) == cfg_to_tcp)
		end -= (__u64)(cfg_to_tcp - cfg_to_tcp_half) * cfg_hz;
	if (owned && end + grace > now) {
		/* Unless the timeout has become shorter meanwhile (fbr_sess_track). */
		if (!pressed)
			__sync_val_compare_and_swap(&s->check_at, check_at, end);
		return false;
	}
	if (!fbr_sess_claim(s, state))
		return false;
	fbr_sess_free(slot);
	return true;
}

#endif
