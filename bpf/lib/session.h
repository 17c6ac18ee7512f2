/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Life and death of a session: TCP state, expiry, reclaim, the sweep.
 *
 * Nothing here needs a process. A session past its time is a miss for the
 * packet that finds it; its memory comes back through the sweep timer, through
 * whoever needs the slot, or through the packet that wants the same flow. Who
 * deletes a session first claims it (FBR_LIVE -> FBR_DYING by compare-and-swap).
 * The sweep waits FBR_GRACE seconds after expiry: entries are re-used at once,
 * and a CPU may still hold a pointer.
 */
#ifndef FBR_SESSION_H
#define FBR_SESSION_H

#include "clock.h"
#include "config.h"
#include "flow.h"
#include "lease.h"
#include "maps.h"
#include "nport.h"
#include "parse.h"

#define FBR_GRACE        2        /* seconds between expiry and reclaim */
#define FBR_SWEEP_SLOTS  256      /* per tick */
#define FBR_SWEEP_NS     20000000 /* 20 ms */
#define FBR_SWEEP_STALL  5  /* seconds without a tick before the kernel path restarts the timer */
#define FBR_PROBES       64 /* slots looked at by one insert when none is free */
#define FBR_ROOM_TRIES   64 /* queued sessions looked at to make room for one */
#define FBR_TCP_SEQ      4  /* offsets in the TCP header */
#define FBR_TCP_ACK_SEQ  8
#define FBR_FIRST_WINDOW 65536 /* bytes that a container sends before it hears of its client */
#define FBR_WAIT_TRIM    2     /* queued sessions thrown out by one that is queued */

static __always_inline bool fbr_both_fins(__u32 bits)
{
	const __u32 both = FBR_S_FIN_OUT | FBR_S_FIN_IN;

	return (bits & both) == both;
}

static __always_inline bool fbr_closed_bits(__u32 bits)
{
	return (bits & (FBR_S_RST | FBR_S_RST_IN)) || fbr_both_fins(bits);
}

/* Closed by nothing but a RST from outside, whose sequence number nobody here can
 * judge: the connection may live.
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

/* Seconds a session lives after its last packet. */
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

/* The jiffies at which the session ends unless a packet comes. */
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

/* Whether the time of f's session is not over. One entry is enough to tell that
 * it lives: the other direction's is looked up, and so fetched from memory where
 * there are many flows, only if this one's has been silent for so long.
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

static __always_inline bool fbr_is_live(__u32 state)
{
	return (state & FBR_STATE_MASK) == FBR_LIVE;
}

/* Reads the state before a session is judged, for fbr_sess_claim. */
static __always_inline __u32 fbr_sess_state(const struct fbr_session *s)
{
	return *(volatile __u32 *)&s->state;
}

/* Claims the session for deletion if it is still the one whose state was read. */
static __always_inline bool fbr_sess_claim(struct fbr_session *s, __u32 state)
{
	__u32 dying = (state & ~FBR_STATE_MASK) | FBR_DYING;

	return fbr_is_live(state) && __sync_val_compare_and_swap(&s->state, state, dying) == state;
}

/* The port in whose quota the session counts. */
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

/* Frees the session if it has been dead for grace jiffies. pressed: a slot is
 * wanted, and a connection may be over that has been idle for the 2 hours and 4
 * minutes that RFC 5382 REQ-5 gives it.
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

/* Takes the leases of both directions away. */
static __always_inline void fbr_sess_slow(struct fbr_flow *fwd, __u32 slot)
{
	struct fbr_flow *rev = fbr_flow_in(slot);

	fbr_lease_end(fwd);
	if (rev)
		fbr_lease_end(rev);
}

/* Queues a session that is over, or is said to be. */
static __always_inline void fbr_closed_push(__u32 slot, struct fbr_session *s)
{
	if (fbr_doubted_bits(s->bits)) {
		if (!(__sync_fetch_and_or(&s->queued, FBR_Q_DOUBTED) & FBR_Q_DOUBTED))
			bpf_map_push_elem(&fbr_doubted, &slot, BPF_ANY);
		return;
	}
	if (!(__sync_fetch_and_or(&s->queued, FBR_Q_CLOSED) & FBR_Q_CLOSED))
		bpf_map_push_elem(&fbr_closed, &slot, BPF_ANY);
}

/* Takes the slot at the head of fbr_closed, or of fbr_doubted; NULL if it is empty. */
static __always_inline struct fbr_session *fbr_closed_pop(__u32 *slot, bool doubted)
{
	struct fbr_session *s;

	if (doubted ? bpf_map_pop_elem(&fbr_doubted, slot) : bpf_map_pop_elem(&fbr_closed, slot))
		return NULL;
	s = fbr_sess_get(*slot);
	if (s)
		__sync_fetch_and_and(&s->queued, doubted ? ~FBR_Q_DOUBTED : ~FBR_Q_CLOSED);
	return s;
}

/* Whether w is still the session that was queued, and waits. */
static __always_inline bool fbr_still_waits(const struct fbr_wait *w)
{
	struct fbr_session *s = fbr_sess_get(w->slot);

	return s && fbr_sess_state(s) == w->state && (s->bits & FBR_S_WAITING);
}

static long fbr_drop_early_one(__u64 i, bool *made)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	struct fbr_wait w;

	if (!st || bpf_map_pop_elem(&fbr_waiting, &w))
		return 1;
	if (!fbr_still_waits(&w))
		return 0;
	s = fbr_sess_get(w.slot);
	if (!s || !fbr_sess_claim(s, w.state))
		return 0;
	fbr_sess_free(w.slot);
	__sync_fetch_and_add(&st->dropped_early, 1);
	*made = true;
	return 1;
}

/* Gives up the oldest session that was begun outside and is not assured, as
 * conntrack's early_drop does. False if none was found.
 */
__fbr_global bool fbr_drop_early(void)
{
	bool made = false;

	bpf_loop(FBR_ROOM_TRIES, fbr_drop_early_one, &made, 0);
	return made;
}

/* Queues a session that begins outside, and throws out more than one that need not
 * stand in the queue any more.
 */
static __always_inline void fbr_wait_push(__u32 slot, const struct fbr_session *s)
{
	struct fbr_wait w = { .slot = slot, .state = fbr_sess_state(s) }, head;
	int i;

	for (i = 0; i < FBR_WAIT_TRIM; i++) {
		if (bpf_map_peek_elem(&fbr_waiting, &head) || fbr_still_waits(&head))
			break;
		/* Another CPU may have taken the one just seen. */
		if (bpf_map_pop_elem(&fbr_waiting, &head))
			break;
		if (fbr_still_waits(&head))
			bpf_map_push_elem(&fbr_waiting, &head, BPF_ANY);
	}
	/* Full of those that need not: the oldest gives way, whatever it is. */
	bpf_map_push_elem(&fbr_waiting, &w, BPF_EXIST);
}

/* The part of n sessions that those begun outside may take. */
static __always_inline __u32 fbr_share_outside(__u32 n)
{
	return n - n / 8;
}

/* A connection that was begun outside is assured: from now on it counts like any
 * other, unless there are too many. UDP goes on waiting: a datagram can be forged as
 * easily as the one before, and the next one makes its session again.
 */
static __always_inline void fbr_wait_done(struct fbr_session *s)
{
	struct fbr_quota *q = fbr_quota_get(fbr_payer(s));
	struct fbr_state *st = fbr_state_get();

	if (s->fwd.proto != IPPROTO_TCP || !st)
		return;
	if ((q && q->sessions >= fbr_share_outside(cfg_flows_quota)) ||
	    st->live - st->waiting >= fbr_share_outside(cfg_flows_max))
		return;
	if (q)
		__sync_fetch_and_add(&q->sessions, 1);
	if (__sync_fetch_and_and(&s->bits, ~FBR_S_WAITING) & FBR_S_WAITING)
		__sync_fetch_and_add(&st->waiting, -1);
	else if (q) /* another CPU was faster, or has freed it */
		fbr_atomic_dec(&q->sessions);
}

/* A TCP session that has become established, or is over, is not half-open any more. */
static __always_inline void fbr_half_done(struct fbr_session *s, __u32 bits)
{
	struct fbr_quota *q;

	if (!(bits & FBR_S_HALF) || (!fbr_established(bits) && !fbr_closed_bits(bits)))
		return;
	if (!(__sync_fetch_and_and(&s->bits, ~FBR_S_HALF) & FBR_S_HALF))
		return;
	q = fbr_quota_get(fbr_payer(s));
	if (q)
		fbr_atomic_dec(&q->half);
}

/* A session that closes, and would have ended at end (jiffies), lives for the
 * closing time from now on, however long it was idle: a RST may have been forged
 * (RFC 7857 section 2.2). But no longer than it would have: a RST keeps nothing
 * alive (section 7). f is its outbound entry.
 */
static __always_inline void fbr_closing(struct fbr_flow *f, __u64 end)
{
	__u64 closing = (__u64)cfg_to_tcp_closing * cfg_hz, now = fbr_now();

	if (end > now + closing)
		end = now + closing;
	if (end - closing > f->seen)
		f->seen = end - closing;
}

/* What a packet tells about whether the two sides hear each other; answers: it is of
 * the side that did not begin. A container's TCP needs no answer to be believed: its
 * connections may be older than the session.
 */
static __always_inline __u32 fbr_answer_bits(__u32 bits, const struct fbr_pkt *p, bool answers)
{
	bool tcp = p->proto == IPPROTO_TCP;

	if (answers)
		return FBR_S_REPLIED;
	if (tcp && (p->tcp_flags & (TCP_SYN | TCP_RST)))
		return 0;
	return (bits & FBR_S_REPLIED) || (tcp && !(bits & FBR_S_INBOUND)) ? FBR_S_ASSURED : 0;
}

/* Whether the next packet of the side that began decides how long the session lives. */
static __always_inline bool fbr_to_be_assured(const struct fbr_session *s, __u32 bits)
{
	if (bits & FBR_S_WAITING)
		return true;
	return s->fwd.proto == IPPROTO_UDP && s->fwd.dport == bpf_htons(53) &&
	       !(bits & (FBR_S_INBOUND | FBR_S_ASSURED));
}

/* Whether a client acknowledges what the container has answered it, and so has got it.
 * p is of the client, or the container's SYN-ACK, whose number is noted.
 */
static __always_inline bool fbr_acknowledges(struct __sk_buff *skb, const struct fbr_pkt *p,
					     struct fbr_session *s, bool out)
{
	__be32 n = 0;

	if (p->proto != IPPROTO_TCP || !(s->bits & FBR_S_INBOUND))
		return true;
	if (!out) {
		bpf_skb_load_bytes(skb, p->l4 + FBR_TCP_ACK_SEQ, &n, sizeof(n));
		return (p->tcp_flags & TCP_ACK) && bpf_ntohl(n) - s->isn <= FBR_FIRST_WINDOW;
	}
	if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) &&
	    !bpf_skb_load_bytes(skb, p->l4 + FBR_TCP_SEQ, &n, sizeof(n)))
		s->isn = bpf_ntohl(n);
	return true;
}

/* A RST ends a connection. One from outside that nothing else speaks for is noted
 * apart.
 */
static __always_inline __u32 fbr_rst_bits(__u32 bits, bool out)
{
	bool lives = fbr_established(bits) && !(bits & (FBR_S_FIN_OUT | FBR_S_FIN_IN));

	return !out && lives ? FBR_S_RST_IN : FBR_S_RST;
}

/* Notes what a packet on the kernel path tells about the session. RFC 6146 section
 * 3.5.2, coarser: only SYN, FIN and RST move a TCP session, and any segment after a
 * RST takes that back, since the RST may have been forged or out of window.
 */
__fbr_global int fbr_sess_track(struct __sk_buff *skb, __u32 slot, const struct fbr_pkt *p,
				bool out)
{
	if (!p)
		return 0;

	const __u32 resets = FBR_S_RST | FBR_S_RST_IN;
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_flow *f;
	__u32 set, unset = 0, bits;
	__u64 closes = 0;
	bool closed, answers, fin = false;

	if (!s)
		return 0;
	bits = s->bits;
	answers = out == !!(bits & FBR_S_INBOUND);
	set = fbr_answer_bits(bits, p, answers);
	if (!(bits & FBR_S_ASSURED) && !fbr_acknowledges(skb, p, s, out))
		set &= ~FBR_S_ASSURED;
	if (p->proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_RST) {
			set = fbr_rst_bits(bits, out);
		} else if (p->tcp_flags & TCP_SYN) {
			if (!answers && !(p->tcp_flags & TCP_ACK) && fbr_closed_bits(bits))
				/* the 4-tuple is used again */
				unset = resets | FBR_S_FIN_OUT | FBR_S_FIN_IN | FBR_S_REPLIED |
					FBR_S_ASSURED;
		} else {
			fin = p->tcp_flags & TCP_FIN;
			if (fin)
				set |= out ? FBR_S_FIN_OUT : FBR_S_FIN_IN;
			/* Where inbound packets keep nothing alive, they revive nothing. */
			if (out || !(bits & FBR_S_OUT_ONLY))
				unset = resets;
		}
	}
	if (bits & unset) {
		__sync_fetch_and_and(&s->bits, ~unset);
		s->check_at = 0; /* the timeout may have become shorter */
	}
	bits = s->bits;
	if (!fbr_closed_bits(bits) && fbr_closed_bits(bits | set))
		closes = fbr_sess_expires(slot);
	set &= ~bits;
	if (set) {
		__sync_fetch_and_or(&s->bits, set);
		bits |= set;
		s->check_at = 0;
		fbr_half_done(s, bits);
		/* So that packet has to be seen here. */
		f = NULL;
		if ((set & FBR_S_REPLIED) && fbr_to_be_assured(s, bits))
			f = out ? fbr_flow_in(slot) : fbr_flow_out(slot);
		if (f)
			fbr_lease_end(f);
	}
	if ((bits & (FBR_S_ASSURED | FBR_S_WAITING)) == (FBR_S_ASSURED | FBR_S_WAITING))
		fbr_wait_done(s);
	closed = p->proto == IPPROTO_TCP && fbr_closed_bits(bits);
	/* A FIN shortens the timeout as well, and no lease outlives its session. */
	if (!closed && !fin)
		return 0;
	f = fbr_flow_out(slot);
	if (f) {
		if (closes)
			fbr_closing(f, closes);
		fbr_sess_slow(f, slot);
	}
	if (closed)
		fbr_closed_push(slot, s);
	return 0;
}

enum fbr_reclaim {
	FBR_RECLAIM_NONE, /* the queue is empty */
	FBR_RECLAIM_DONE,
	FBR_RECLAIM_AGAIN, /* that one will not do */
};

/* Looks at the head of fbr_closed, or of fbr_doubted, and gives that session up if
 * it is the device's (pif; 0: anybody's). One that closed less than 20 ms ago is
 * left alone: its last segments are still on the way.
 */
static __always_inline enum fbr_reclaim fbr_reclaim_one(__u32 pif, bool doubted)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	__u32 slot, state;
	__u64 last;

	s = fbr_closed_pop(&slot, doubted);
	if (!s)
		return FBR_RECLAIM_NONE;
	state = fbr_sess_state(s);
	if (!fbr_is_live(state) || !fbr_closed_bits(s->bits))
		return FBR_RECLAIM_AGAIN; /* swept, or open again */
	last = fbr_sess_expires(slot) - (__u64)cfg_to_tcp_closing * cfg_hz;
	if ((pif && fbr_payer(s) != pif) || fbr_now() - last < cfg_hz / 50 ||
	    (!doubted && fbr_doubted_bits(s->bits))) {
		fbr_closed_push(slot, s);
		return FBR_RECLAIM_AGAIN;
	}
	if (!fbr_sess_claim(s, state))
		return FBR_RECLAIM_AGAIN;
	fbr_sess_free(slot);
	if (st)
		__sync_fetch_and_add(&st->reclaimed, 1);
	return FBR_RECLAIM_DONE;
}

struct fbr_room {
	__u32 pif;
	__u32 ports; /* it has room for a port with fewer of them; 0: a session is wanted only */
	bool doubted;
	bool made;
};

static long fbr_room_one(__u64 i, struct fbr_room *r)
{
	enum fbr_reclaim got = fbr_reclaim_one(r->pif, r->doubted);
	struct fbr_quota *q;

	if (got == FBR_RECLAIM_NONE)
		return 1;
	if (got == FBR_RECLAIM_AGAIN)
		return 0;
	/* A session may have shared its port with others. */
	q = r->ports ? fbr_quota_get(r->pif) : NULL;
	r->made = !q || q->ports < r->ports;
	return r->made;
}

/* Gives up closed sessions of a device (pif; 0: of anybody), the longest-closed
 * first, until there is room for one more session, or, where the device may have so
 * many ports (0: that does not matter), for one more port. doubted: those that only a
 * RST from outside has closed, after all others. False if there is none to give up.
 */
__fbr_global bool fbr_make_room(__u32 pif, __u32 ports, bool doubted)
{
	struct fbr_room r = { .pif = pif, .ports = ports };

	bpf_loop(FBR_ROOM_TRIES, fbr_room_one, &r, 0);
	if (r.made || !doubted)
		return r.made;
	r.doubted = true;
	bpf_loop(FBR_ROOM_TRIES, fbr_room_one, &r, 0);
	return r.made;
}

struct fbr_sweep {
	__u32 slots; /* in use so far */
	__u32 hand;
	__u32 grace;
	bool pressed; /* a slot is wanted */
	bool found;
};

static long fbr_sweep_one(__u64 i, struct fbr_sweep *w)
{
	if (w->hand >= w->slots)
		w->hand = 0;
	if (fbr_sess_reap(w->hand++, w->grace, w->pressed))
		w->found = true; /* not a count: that would keep the verifier counting, too */
	return 0;
}

/* Looks at up to n slots from the hand on; returns whether one came free. */
static __always_inline bool fbr_sweep_slots(struct fbr_state *st, __u32 n, bool pressed)
{
	struct fbr_sweep w = {
		.slots = st->fresh < cfg_flows_max ? st->fresh : cfg_flows_max,
		.hand = st->hand,
		.grace = FBR_GRACE * cfg_hz,
		.pressed = pressed,
	};

	if (w.slots < n)
		n = w.slots;
	bpf_loop(n, fbr_sweep_one, &w, 0);
	st->hand = w.hand;
	return w.found;
}

/* Takes a slot that is no closed session any more off the head of fbr_closed, or of
 * fbr_doubted.
 */
static long fbr_closed_trim(__u64 i, const bool *doubted)
{
	bool from = *doubted;
	struct fbr_session *s;
	__u32 slot;

	if (from ? bpf_map_peek_elem(&fbr_doubted, &slot) : bpf_map_peek_elem(&fbr_closed, &slot))
		return 1;
	s = fbr_sess_get(slot);
	if (s && fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		return 1;
	/* Another CPU may have taken the one just seen. */
	s = fbr_closed_pop(&slot, from);
	if (!s)
		return 1;
	if (fbr_is_live(fbr_sess_state(s)) && fbr_closed_bits(s->bits))
		fbr_closed_push(slot, s);
	return 0;
}

/* One tick's work. */
static __always_inline void fbr_sweep_pass(struct fbr_state *st)
{
	bool doubted = false;

	fbr_sweep_slots(st, FBR_SWEEP_SLOTS, false);
	bpf_loop(FBR_SWEEP_SLOTS, fbr_closed_trim, &doubted, 0);
	doubted = true;
	bpf_loop(FBR_SWEEP_SLOTS, fbr_closed_trim, &doubted, 0);
}

static int fbr_sweep_tick(void *map, __u32 *key, struct fbr_state *st)
{
	fbr_sweep_pass(st);
	if (!st->live) {
		/* Nothing to sweep; the next new session starts the timer again. */
		st->tick = 0;
		return 0;
	}
	st->tick = fbr_now();
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
	return 0;
}

/* Starts the sweep if it does not run: the first session, a stalled timer, or
 * programs that have been replaced (the timer holds the old ones' callback).
 */
static __always_inline void fbr_sweep_ensure(struct fbr_state *st)
{
	__u64 now = fbr_now();

	if (st->tick && now - st->tick < FBR_SWEEP_STALL * cfg_hz && st->epoch == cfg_epoch + 1)
		return;
	st->tick = now;
	st->epoch = cfg_epoch + 1;
	bpf_timer_init(&st->timer, &fbr_state, CLOCK_MONOTONIC); /* EBUSY: has been */
	bpf_timer_set_callback(&st->timer, fbr_sweep_tick);
	fbr_timer_start(&st->timer, FBR_SWEEP_NS);
}

#endif
