/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* External ports: who owns which, and which to take next.
 *
 * A port is taken by compare-and-swap of .taken from 0 to 1, counted by .refs
 * (one a session), and given back by whoever brings .refs to 0. Free ports
 * stand in a queue, so that taking one is O(1), "full" means full, and the
 * longest-released comes first: the hold of RFC 6888 REQ-8 gives way, oldest
 * first, only when nothing else is left. A port that is taken out of turn
 * (because it equals the container's, and was not another's just now) stays in
 * the queue with .queued set and is skipped when its turn comes.
 */
#ifndef FBR_NPORT_H
#define FBR_NPORT_H

#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "maps.h"
#include "parse.h"

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple_len, struct bpf_ct_opts___12 *opts,
					 __u32 opts_len) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *ct) __ksym __weak;
extern int bpf_ct_change_timeout(struct nf_conn *ct, __u32 ms) __ksym __weak;

#define FBR_PORT_LOOKS  512 /* free ports looked at by one allocation: each costs two lookups */
#define FBR_PORT_PREFER 6   /* of those, as long as noted ones are passed over */
#define FBR_REF_TRIES   8   /* attempts to count one more session on a binding */
#define FBR_CT_REPLY    1   /* enum ip_conntrack_dir */
#define FBR_NO_PORT     0xffffffff
#define FBR_PORT_AGAIN  0xfffffffe /* this one will not do */
#define FBR_PORT_TAKEN  0xfffffffd /* this one is not free any more */

static __always_inline __u32 fbr_class(__u8 proto)
{
	return proto == IPPROTO_TCP   ? FBR_CLASS_TCP
	       : proto == IPPROTO_UDP ? FBR_CLASS_UDP
				      : FBR_CLASS_ICMP;
}

/* Offset of a port (network byte order) in the NAT range; >= cfg_nat_count if outside. */
static __always_inline __u32 fbr_port_offset(__be16 port)
{
	return (__u32)bpf_ntohs(port) - cfg_nat_first;
}

static __always_inline bool fbr_in_range(__be16 port)
{
	return fbr_port_offset(port) < cfg_nat_count;
}

/* The port (network byte order) at an offset of the NAT range. */
static __always_inline __be16 fbr_range_port(__u32 off)
{
	return bpf_htons(cfg_nat_first + off);
}

static __always_inline struct fbr_nport *fbr_nport_get(__u8 proto, __u32 off)
{
	__u32 i = fbr_class(proto) * cfg_nat_count + off;

	return off < cfg_nat_count ? bpf_map_lookup_elem(&fbr_nport, &i) : NULL;
}

static __always_inline long fbr_queue_pop(__u8 proto, __u32 *off)
{
	switch (fbr_class(proto)) {
	case FBR_CLASS_TCP:
		return bpf_map_pop_elem(&fbr_pfree_tcp, off);
	case FBR_CLASS_UDP:
		return bpf_map_pop_elem(&fbr_pfree_udp, off);
	default:
		return bpf_map_pop_elem(&fbr_pfree_icmp, off);
	}
}

static __always_inline void fbr_queue_push(__u8 proto, struct fbr_nport *np, __u32 off)
{
	if (__sync_val_compare_and_swap(&np->queued, 0, 1))
		return;
	switch (fbr_class(proto)) {
	case FBR_CLASS_TCP:
		bpf_map_push_elem(&fbr_pfree_tcp, &off, BPF_ANY);
		break;
	case FBR_CLASS_UDP:
		bpf_map_push_elem(&fbr_pfree_udp, &off, BPF_ANY);
		break;
	default:
		bpf_map_push_elem(&fbr_pfree_icmp, &off, BPF_ANY);
	}
}

/* Whether a socket of the host would receive packets from t's source to its destination. */
static __always_inline bool fbr_socket_exists(struct __sk_buff *skb, __u8 proto,
					      struct bpf_sock_tuple *t)
{
	struct bpf_sock *sk = NULL;

	if (proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, t, sizeof(t->ipv4), BPF_F_CURRENT_NETNS, 0);
	else if (proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, t, sizeof(t->ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Whether conntrack knows the connection that t is a packet of: a neighbour NAT's,
 * or the host's own. o says the protocol, and is told which way the packet goes.
 */
static __always_inline bool fbr_ct_exists(struct __sk_buff *skb, struct bpf_sock_tuple *t,
					  struct bpf_ct_opts___12 *o)
{
	struct nf_conn *ct;

	if (o->l4proto == IPPROTO_ICMP || !cfg_conntrack)
		return false;
	ct = bpf_skb_ct_lookup(skb, t, sizeof(t->ipv4), o, sizeof(*o));
	if (!ct)
		return false;
	bpf_ct_release(ct);
	return true;
}

/* Whether nobody else on this host uses ext:port towards the remote of fwd. */
__fbr_global bool fbr_port_clear(struct __sk_buff *skb, struct fbr_flow_key *fwd, __be32 ext,
				 __u32 off)
{
	if (!fwd)
		return false;

	/* One tuple for both: this is the end of the longest chain of calls, and
	 * their stacks together may take 512 bytes.
	 */
	struct bpf_sock_tuple t = {
		.ipv4 = { .saddr = fwd->daddr,
			  .daddr = ext,
			  .sport = fwd->dport,
			  .dport = fbr_range_port(off) },
	};

	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = fwd->proto };

	return !fbr_socket_exists(skb, fwd->proto, &t) && !fbr_ct_exists(skb, &t, &o);
}

static __always_inline bool fbr_port_claim(struct fbr_nport *np)
{
	return __sync_val_compare_and_swap(&np->taken, 0, 1) == 0;
}

/* A neighbour was seen using the port less than the hold time ago. */
static __always_inline bool fbr_port_noted(const struct fbr_nport *np, __u64 now)
{
	return np->noted_at && now - np->noted_at < (__u64)cfg_to_hold * cfg_hz;
}

/* Gives a claimed port without sessions back. */
static __always_inline void fbr_port_unclaim(__u8 proto, struct fbr_nport *np, __u32 off)
{
	*(volatile __u32 *)&np->taken = 0;
	fbr_queue_push(proto, np, off);
}

/* Takes the next port of the queue. prefer: pass over one that a neighbour was
 * seen using. Returns the offset in the range, FBR_PORT_AGAIN, FBR_PORT_TAKEN,
 * or FBR_NO_PORT if the queue is empty.
 */
static __always_inline __u32 fbr_port_next(struct __sk_buff *skb, struct fbr_flow_key *fwd,
					   __be32 ext, bool prefer)
{
	struct fbr_nport *np;
	__u32 off;

	if (fbr_queue_pop(fwd->proto, &off))
		return FBR_NO_PORT;
	np = fbr_nport_get(fwd->proto, off);
	if (!np)
		return FBR_PORT_AGAIN;
	np->queued = 0;
	if (!fbr_port_claim(np))
		return FBR_PORT_TAKEN; /* out of turn: queued again when released */
	if ((prefer && fbr_port_noted(np, fbr_now())) || !fbr_port_clear(skb, fwd, ext, off)) {
		fbr_port_unclaim(fwd->proto, np, off);
		return FBR_PORT_AGAIN;
	}
	return off;
}

struct fbr_port_search {
	struct __sk_buff *skb;
	struct fbr_flow_key *fwd;
	__be32 ext;
	__u32 looked;
	__u32 off; /* the port found, or FBR_NO_PORT */
};

static long fbr_port_look(__u64 i, struct fbr_port_search *s)
{
	__u32 off = fbr_port_next(s->skb, s->fwd, s->ext, s->looked < FBR_PORT_PREFER);

	if (off == FBR_PORT_TAKEN)
		return 0; /* leaves the queue for good, whoever took it has paid for it */
	if (off == FBR_NO_PORT)
		return 1;
	/* Atomic, so that the verifier does not follow the count. */
	__sync_fetch_and_add(&s->looked, 1);
	if (off == FBR_PORT_AGAIN)
		return s->looked >= FBR_PORT_LOOKS;
	s->off = off;
	return 1;
}

/* Whether the port was another container's less than the hold time ago. */
static __always_inline bool fbr_port_held(const struct fbr_nport *np, __be32 ip, __u64 now)
{
	return np->used_at && np->ip != ip && now - np->used_at < (__u64)cfg_to_hold * cfg_hz;
}

/* Takes a free external port for fwd: its own source port if that lies in the
 * range and is not on hold, else the next of the queue; ports noted for a
 * neighbour last, ports of a listener or another connection to the same remote
 * never. Sets *moved if that is why it is not its own. Returns the offset in the
 * range, claimed, or FBR_NO_PORT; the caller writes the owner.
 */
static __always_inline __u32 fbr_port_take(struct __sk_buff *skb, struct fbr_flow_key *fwd,
					   __be32 ext, bool *moved)
{
	__u32 off = fbr_port_offset(fwd->sport);
	struct fbr_nport *np = fbr_nport_get(fwd->proto, off);
	struct fbr_port_search s = { .skb = skb, .fwd = fwd, .ext = ext, .off = FBR_NO_PORT };
	struct fbr_state *st = fbr_state_get();
	__u64 now = fbr_now();

	if (!st)
		return FBR_NO_PORT;
	if (np && !fbr_port_held(np, fwd->saddr, now) && fbr_port_claim(np)) {
		if (!fbr_port_noted(np, now) && fbr_port_clear(skb, fwd, ext, off)) {
			__sync_fetch_and_add(&st->tries[1], 1);
			return off;
		}
		fbr_port_unclaim(fwd->proto, np, off);
		*moved = true;
	}
	/* The whole queue, and again those passed over: "full" must mean full. */
	bpf_loop(cfg_nat_count + FBR_PORT_PREFER, fbr_port_look, &s, 0);
	if (s.off == FBR_NO_PORT || s.looked > FBR_PORT_TRIES)
		s.looked = 0;
	__sync_fetch_and_add(&st->tries[s.looked], 1);
	return s.off;
}

/* Counts one more session on a binding's port; false if it is just being released. */
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

/* Counts one more session of the port towards a remote address. Without room the
 * session goes uncounted, and only its own remote may answer.
 */
__fbr_global bool fbr_peer_ref(__u8 proto, __u32 off, __be32 addr)
{
	struct fbr_peer_key k = { .nport = fbr_class(proto) * cfg_nat_count + off, .addr = addr };
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

static __always_inline void fbr_peer_put(__u8 proto, __u32 off, __be32 addr)
{
	struct fbr_peer_key k = { .nport = fbr_class(proto) * cfg_nat_count + off, .addr = addr };
	__u32 *n = bpf_map_lookup_elem(&fbr_peer, &k);

	if (n && __sync_fetch_and_add(n, (__u32)-1) == 1)
		bpf_map_delete_elem(&fbr_peer, &k);
}

static __always_inline void fbr_atomic_dec(__u32 *v)
{
	__sync_fetch_and_add(v, (__u32)-1);
}

/* Takes one session off a port; the last one releases it. */
static __always_inline void fbr_port_put(__u8 proto, __u32 off)
{
	struct fbr_nport *np = fbr_nport_get(proto, off);
	struct fbr_state *st = fbr_state_get();
	struct fbr_quota *q;

	if (!np || !st || __sync_fetch_and_add(&np->refs, (__u32)-1) != 1)
		return;
	if (np->bound) {
		struct fbr_bind_key k = { .ip = np->ip, .port = np->port, .proto = proto };

		bpf_map_delete_elem(&fbr_bind, &k);
		np->bound = 0;
	}
	q = fbr_quota_get(np->pif);
	if (q)
		fbr_atomic_dec(&q->ports);
	fbr_atomic_dec(&st->in_use[fbr_class(proto)]);
	np->used_at = fbr_now();
	fbr_port_unclaim(proto, np, off);
}

#endif
