/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a packet on the kernel's path tells about its session. */
#ifndef FBR_TRACK_H
#define FBR_TRACK_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "flow.h"
#include "lease.h"
#include "nat.h"
#include "parse.h"
#include "queues.h"
#include "session.h"

#define FBR_FIRST_WINDOW 65536 /* bytes that a container sends before it hears from its client */

/* Shortens the life of a session that closes and would have ended at end (jiffies). It now
 * lives for the closing time, however long it was idle, because a RST may be forged (RFC
 * 7857 section 2.2). It never lives longer than before, because a RST keeps nothing alive
 * (section 7). f is its outbound entry.
 */
static __always_inline void fbr_closing(struct fbr_flow *f, __u64 end)
{
	__u64 closing = (__u64)cfg_to_tcp_closing * cfg_hz, now = fbr_now();

	if (end > now + closing)
		end = now + closing;
	if (end - closing > f->seen)
		f->seen = end - closing;
}

/* What a packet tells about whether the two sides hear each other. answers: it is from the
 * side that did not begin. A container's TCP session is assured without an answer: the
 * connection may be older than the session.
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

/* Whether a client acknowledges what the container has sent it, and so has received it. p
 * is from the client, or it is from the container; then the number of a SYN-ACK is
 * recorded.
 */
static __always_inline bool fbr_acknowledges(struct __sk_buff *skb, const struct fbr_pkt *p,
					     struct fbr_session *s, bool out)
{
	__be32 n = 0;

	if (p->proto != IPPROTO_TCP || !(s->bits & FBR_S_INBOUND))
		return true;
	if (!out) {
		bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, ack_seq), &n, sizeof(n));
		return (p->tcp_flags & TCP_ACK) && bpf_ntohl(n) - s->isn <= FBR_FIRST_WINDOW;
	}
	if (fbr_syn_ack(p) &&
	    !bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, seq), &n, sizeof(n)))
		s->isn = bpf_ntohl(n);
	return true;
}

/* A RST ends a connection. If a RST from outside is the only sign of the end, it is
 * recorded apart.
 */
static __always_inline __u32 fbr_rst_bits(__u32 bits, bool out)
{
	bool lives = fbr_established(bits) && !(bits & (FBR_S_FIN_OUT | FBR_S_FIN_IN));

	return !out && lives ? FBR_S_RST_IN : FBR_S_RST;
}

/* Updates the session from a packet on the kernel's path. Coarser than RFC 6146 section
 * 3.5.2: only SYN, FIN and RST move a TCP session. Any later segment takes a RST back,
 * since the RST may have been forged or out of window.
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
			/* Inbound packets revive only what they can keep alive. */
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
		/* So the kernel's path has to see that packet. */
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

#endif
