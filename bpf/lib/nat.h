/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* New sessions and translation on the kernel path.
 *
 * A session is a slot in fbr_sess and two entries in fbr_flow, entered reverse
 * first: the reverse key is the lock on the external tuple.
 * The external port belongs to (protocol, container, source port) and is the
 * same for every destination (RFC 4787 REQ-1); only when no port is free, or
 * when that port is in use towards this very remote, is one shared.
 */
#ifndef FBR_NAT_H
#define FBR_NAT_H

#include "clock.h"
#include "config.h"
#include "csum.h"
#include "flow.h"
#include "kctx.h"
#include "lease.h"
#include "local.h"
#include "maps.h"
#include "nport.h"
#include "parse.h"
#include "publish.h"
#include "reason.h"
#include "session.h"

#define FBR_OVERLOAD_TRIES 16 /* ports tried for sharing when none is free */

/* Whether new sessions wait, since those of older maps are being brought over (carry.h). */
static __always_inline bool fbr_held(void)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && c->hold_until > fbr_now();
}

/* A session to be created. */
struct fbr_new {
	struct fbr_flow_key fwd;
	__be32 ext;
	__u32 pif;   /* 0: the host's own */
	__u32 payer; /* the port in whose quota it counts: who causes it; 0: pif */
	__u32 slot;
	__be16 eport;           /* external port or id */
	enum fbr_net_flags net; /* of the container's network; 0: the host */
	bool owns;              /* the port is counted, not shared */
	bool inbound;           /* begun by the remote: on a live mapping or not at all */
	bool outside;           /* which is none of the host's containers */
	bool published;         /* eport is a publication's, not one of the range */
	bool moved;             /* the host or a neighbour has the port that it would have had */
};

/* Inserts both entries. Returns 0, -EEXIST if the external tuple is taken, or another error. */
__fbr_global int fbr_pair_insert(struct fbr_new *n)
{
	if (!n)
		return -ENOENT;

	struct fbr_flow *in = fbr_flow_new(2 * n->slot + 1), *out = fbr_flow_new(2 * n->slot);
	__u8 host = n->pif ? 0 : FBR_HOST;
	bool icmp = n->fwd.proto == IPPROTO_ICMP;
	struct fbr_flow_key rk;
	long err;

	if (!in || !out)
		return -ENOENT;
	in->seen = out->seen = fbr_now();
	in->pif = out->pif = n->pif;
	in->sess = out->sess = n->slot;
	in->no_xdp = out->no_xdp = 0;

	in->kind = FBR_IN | host;
	in->addr = n->fwd.saddr;
	in->port = n->fwd.sport;
	in->oif = n->pif;
	in->d_addr = fbr_diff32(n->ext, n->fwd.saddr);
	in->d_l4 = fbr_diff16(icmp ? 0 : in->d_addr, n->eport, n->fwd.sport);

	out->kind = FBR_OUT | host;
	out->addr = n->ext;
	out->port = n->eport;
	out->oif = 0;
	out->d_addr = fbr_diff32(n->fwd.saddr, n->ext);
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

/* A free slot of fbr_sess, or cfg_flows_max if there is none. */
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

/* The external port of an existing binding: sets n->eport and counts one more
 * session on it. False if there is none, or if somebody else on this host
 * already talks to this remote from that port.
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

	if (!bound)
		return false;
	port = *bound;
	n->eport = bpf_htons(port);
	np = fbr_nport_get(bk.proto, port);
	if (!np)
		return false;
	if (!fbr_port_clear(skb, &n->fwd, n->ext, port)) {
		n->moved = true;
		return false;
	}
	if (!fbr_port_ref(np))
		return false;
	if (np->ip == bk.ip && np->port == bk.port) {
		if (n->ext != n->fwd.daddr)
			np->ext = n->ext;
		return true;
	}
	/* Released and taken by somebody else since the binding was read. */
	fbr_port_put(bk.proto, port);
	return false;
}

/* Makes the source of fwd the owner of a taken port, for its first session. It
 * becomes the binding's unless there is one.
 */
static __always_inline void fbr_port_own(struct fbr_nport *np, const struct fbr_flow_key *fwd,
					 __u32 port, __be32 ext, __u32 pif, enum fbr_net_flags net)
{
	struct fbr_bind_key bk = { .ip = fwd->saddr, .port = fwd->sport, .proto = fwd->proto };
	struct fbr_quota *q;

	np->ip = bk.ip;
	np->port = bk.port;
	np->pif = pif;
	np->ext = ext;
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

/* A new external port, which becomes the binding's unless there is one. False
 * if no port is free.
 */
__fbr_global bool fbr_bind_new(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return false;

	__u32 port = fbr_port_take(skb, &n->fwd, n->ext, &n->moved);
	struct fbr_nport *np;

	if (port == FBR_NO_PORT)
		return false;
	np = fbr_nport_get(n->fwd.proto, port);
	if (!np)
		return false;
	n->eport = bpf_htons(port);
	fbr_port_own(np, &n->fwd, port, n->ext, n->pif, n->net);
	return true;
}

/* Inserts the pair; a dead session in the way is removed. */
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

/* Inserts the pair on a port that n owns; gives the port back on failure. */
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
		    !fbr_port_clear(skb, &n->fwd, n->ext, port))
			continue;
		if (!fbr_pair_insert(n)) {
			if (st)
				__sync_fetch_and_add(&st->overloads, 1);
			return 0;
		}
	}
	return -E2BIG;
}

/* What is known of a session at its birth, fbr_sess_bits. */
static __always_inline __u32 fbr_first_bits(const struct fbr_new *n)
{
	__u32 bits = n->inbound ? FBR_S_INBOUND : 0;

	if (!n->pif)
		bits |= FBR_S_HOST;
	else if (n->fwd.proto == IPPROTO_TCP && !n->inbound)
		bits |= FBR_S_HALF;
	if (n->outside)
		bits |= FBR_S_WAITING;
	if (n->published)
		bits |= FBR_S_PUBLISHED;
	if (!n->owns)
		return bits | FBR_S_OVERLOAD;
	if (n->net & (FBR_NET_ADF | FBR_NET_EIF))
		bits |= FBR_S_OUT_ONLY;
	if ((n->net & FBR_NET_ADF) && fbr_peer_ref(n->fwd.proto, bpf_ntohs(n->eport), n->fwd.daddr))
		bits |= FBR_S_PEER;
	return bits;
}

static __always_inline __u32 fbr_new_payer(const struct fbr_new *n)
{
	return n->payer ? n->payer : n->pif;
}

/* Whether there is room for n: within the quota of whoever causes it; or, begun
 * outside, where nobody can be held to a quota, beside so many that are not assured,
 * of which the oldest gives way. The last eighths of the table and of its container's
 * share are for what containers begin. Returns FBR_NONE or why not.
 */
__fbr_global enum fbr_reason fbr_room(const struct fbr_new *n)
{
	struct fbr_state *st = fbr_state_get();
	struct fbr_quota *q;
	__u32 payer, share;

	if (!n || !st)
		return FBR_NAT_FULL;
	payer = fbr_new_payer(n);
	q = fbr_quota_get(payer);
	if (n->outside && st->waiting >= cfg_waiting_max && !fbr_drop_early())
		return FBR_NAT_FULL;
	share = n->outside ? fbr_share_outside(cfg_flows_quota) : cfg_flows_quota;
	if (q && q->sessions >= share && !fbr_make_room(payer, 0, true))
		return FBR_QUOTA;
	if (q && n->fwd.proto == IPPROTO_TCP && !n->inbound && q->half >= cfg_half_quota)
		return FBR_QUOTA;
	if (n->outside && st->live >= fbr_share_outside(cfg_flows_max) &&
	    !fbr_make_room(0, 0, false) && !fbr_drop_early())
		return FBR_NAT_FULL;
	return FBR_NONE;
}

/* The session in a slot of the caller's begins: its entries are there, and all of
 * it that does not change with the slot's lives is written. It counts where it
 * belongs.
 */
static __always_inline void fbr_sess_begin(struct fbr_session *s, __u32 slot, struct fbr_state *st)
{
	struct fbr_quota *q = fbr_quota_get(fbr_payer(s));
	bool waits = s->bits & FBR_S_WAITING;

	s->check_at = 0;
	__sync_fetch_and_add(&st->live, 1);
	if (waits)
		__sync_fetch_and_add(&st->waiting, 1);
	else if (q)
		__sync_fetch_and_add(&q->sessions, 1);
	if (q && (s->bits & FBR_S_HALF))
		__sync_fetch_and_add(&q->half, 1);
	barrier();
	*(volatile __u32 *)&s->state = (s->state & ~FBR_STATE_MASK) | FBR_LIVE;
	if (waits)
		fbr_wait_push(slot, s);
}

/* Creates the session of n (fwd, ext, pif, payer given). Returns FBR_NONE if there is
 * one now, made here or by another CPU, or why not; then nothing is left of it.
 */
__fbr_global enum fbr_reason fbr_sess_create(struct __sk_buff *skb, struct fbr_new *n)
{
	if (!n)
		return FBR_NAT_FULL;

	struct fbr_pool *pool = fbr_pool_get(n->fwd.proto);
	struct fbr_state *st = fbr_state_get();
	struct fbr_session *s;
	enum fbr_reason why;
	struct fbr_quota *q;
	__u32 quota;
	long err;

	if (!st || !pool)
		return FBR_NAT_FULL;
	fbr_sweep_ensure(st);

	why = fbr_room(n);
	if (why == FBR_QUOTA)
		goto quota;
	if (why)
		goto full;
	n->slot = fbr_slot_take();
	s = fbr_sess_get(n->slot);
	if (!s)
		goto full;

	err = -ENOENT;
	if (n->published)
		err = fbr_pair_claim(n);
	else if (!(n->net & FBR_NET_EDM) && !(n->moved && n->pif) && fbr_bind_reuse(skb, n))
		err = fbr_pair_owned(n);
	if (err && !n->inbound && !n->published && !fbr_flow_exists(&n->fwd)) {
		quota = fbr_ports_quota(pool);
		q = fbr_quota_get(n->pif);
		if (q && q->ports >= quota && !fbr_make_room(n->pif, quota, true)) {
			bpf_map_push_elem(&fbr_free, &n->slot, BPF_ANY);
			goto quota;
		}
		/* Pressure: less than 1/8 of the range is free. */
		if (pool->tail - pool->head <= pool->open / 8)
			fbr_make_room(0, 0, pool->tail == pool->head);
		err = fbr_bind_new(skb, n) ? fbr_pair_owned(n) : -ENOENT;
		if (err && !(n->net & FBR_NET_STRICT) && !fbr_flow_exists(&n->fwd))
			err = fbr_overload(skb, n);
	}
	if (err) {
		bpf_map_push_elem(&fbr_free, &n->slot, BPF_ANY);
		if (fbr_flow_exists(&n->fwd))
			return FBR_NONE; /* another CPU was faster */
		goto full;
	}

	s->fwd = n->fwd;
	s->ext = n->ext;
	s->eport = n->eport;
	s->bits = fbr_first_bits(n);
	s->pif = n->pif;
	s->payer = n->payer;
	s->isn = 0;
	if (n->moved)
		__sync_fetch_and_add(&st->remaps, 1);
	fbr_sess_begin(s, n->slot, st);
	return FBR_NONE;
quota:
	__sync_fetch_and_add(&st->refused_quota, 1);
	return FBR_QUOTA;
full:
	__sync_fetch_and_add(&st->refused_full, 1);
	return FBR_NAT_FULL;
}

/* The source address the kernel would choose towards daddr by this device, and
 * the route's MTU; the stored ones where the kernel cannot tell (before 6.7), as
 * long as the address is the host's. 0: there is none.
 */
__fbr_global __be32 fbr_route(struct __sk_buff *skb, const struct fbr_dev *u, __be32 daddr,
			      __u16 *mtu)
{
	if (!u || !mtu)
		return 0;

	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.tot_len = 1, /* asks for the route's MTU */
		.ifindex = u->ifindex,
		.ipv4_dst = daddr,
	};
	int verdict;

	*mtu = u->mtu;
	if (!cfg_fib_src ||
	    bpf_fib_lookup(skb, &fib, sizeof(fib),
			   BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SRC | BPF_FIB_LOOKUP_SKIP_NEIGH))
		goto stored;
	if (fib.mtu_result)
		*mtu = fib.mtu_result;
	return fib.ipv4_src;
stored:
	verdict = u->ip ? fbr_fib_verdict(skb, u->ifindex, u->ip) : 0;
	return verdict == BPF_FIB_LKUP_RET_NOT_FWDED || verdict == BPF_FIB_LKUP_RET_FWD_DISABLED
		       ? u->ip
		       : 0;
}

/* Whether connection tracking has looked at the packet and made or found an entry. */
static __always_inline bool fbr_ct_knows(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);

	return bpf_core_field_exists(k->_nfct) && (k->_nfct & NFCT_PTRMASK);
}

/* What connection tracking says of the packet's connection: bits IPS_*, 0 if it has not
 * looked at the packet.
 */
static __always_inline __u32 fbr_ct_status(struct sk_buff *k)
{
	struct nf_conn *ct;

	if (!bpf_core_field_exists(k->_nfct) || !(k->_nfct & NFCT_PTRMASK))
		return 0;
	ct = (struct nf_conn *)(k->_nfct & NFCT_PTRMASK);
	return bpf_core_field_exists(ct->status) ? BPF_CORE_READ(ct, status) : 0;
}

/* Whether connection tracking translates the packet's connection: by a rule that is
 * none of ours.
 */
static __always_inline bool fbr_ct_translates(struct __sk_buff *skb)
{
	return fbr_ct_status(bpf_cast_to_kern_ctx(skb)) & IPS_NAT_MASK;
}

/* Whether a rule of the host gives the packet's connection another destination (DNAT):
 * a port that somebody else publishes, such as CNI's portmap.
 */
static __always_inline bool fbr_ct_led(struct sk_buff *k)
{
	return fbr_ct_status(k) & IPS_DST_NAT;
}

/* Whether a container's packet answers a connection that a rule of the host leads to the
 * container (DNAT), or is an ICMP error about one. Connection tracking has not seen the
 * packet yet. A later fragment has no ports: the kernel drops it unless the first one
 * came, and fbr_guard sees the reassembled packet.
 */
__fbr_global bool fbr_ct_answers(struct __sk_buff *skb)
{
	struct bpf_ct_opts___12 o = { .netns_id = -1 };
	struct bpf_sock_tuple t = {};
	struct fbr_flow_key k;
	struct fbr_pkt p, in;
	struct nf_conn *ct;
	bool led;

	if (!cfg_conntrack || fbr_parse(skb, &p))
		return false;
	if (p.frag & FBR_FRAG_LATER)
		return true;
	if (p.kind == FBR_L4_ICMP_ERR) {
		if (p.frag || fbr_parse_at(skb, p.l4 + sizeof(struct icmphdr), &in) ||
		    in.kind != FBR_L4_PORTS)
			return false;
		fbr_answer_key(&k, &in);
	} else if (p.kind == FBR_L4_PORTS) {
		fbr_key(&k, &p);
	} else {
		return false;
	}
	t.ipv4.saddr = k.saddr;
	t.ipv4.daddr = k.daddr;
	t.ipv4.sport = k.sport;
	t.ipv4.dport = k.dport;
	o.l4proto = k.proto;
	ct = bpf_skb_ct_lookup(skb, &t, sizeof(t.ipv4), &o, sizeof(o));
	if (!ct)
		return false;
	led = o.dir == FBR_CT_REPLY && bpf_core_field_exists(ct->status) &&
	      (ct->status & IPS_DST_NAT);
	bpf_ct_release(ct);
	return led;
}

/* conntrack would forget an answered UDP flow long before we do, and a firewall
 * that accepts only ESTABLISHED would then cut it: give it our time.
 */
__fbr_global int fbr_ct_extend(struct __sk_buff *skb, const struct fbr_flow_key *fwd, __u32 secs)
{
	if (!fwd)
		return 0;

	struct bpf_sock_tuple t = {
		.ipv4 = {
			.saddr = fwd->saddr,
			.daddr = fwd->daddr,
			.sport = fwd->sport,
			.dport = fwd->dport,
		},
	};
	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = IPPROTO_UDP };
	struct nf_conn *ct;

	if (fwd->proto != IPPROTO_UDP || !cfg_conntrack || !fbr_ct_knows(skb))
		return 0;
	ct = bpf_skb_ct_lookup(skb, &t, sizeof(t.ipv4), &o, sizeof(o));
	if (!ct)
		return 0;
	bpf_ct_change_timeout(ct, secs * 1000);
	bpf_ct_release(ct);
	return 0;
}

/* The live outbound entry for k, or NULL. An entry of another port (the address
 * has a new owner), with another external address (the uplink's has changed) or
 * past its time is removed.
 */
static __always_inline struct fbr_flow *fbr_flow_live(struct __sk_buff *skb,
						      const struct fbr_dev *u,
						      struct fbr_flow_key *k, __u32 pif, __be32 ext)
{
	struct fbr_flow *f = fbr_flow_get(k);
	struct fbr_session *s;
	__u32 slot, state;

	if (!f || !(f->kind & FBR_OUT))
		return NULL;
	slot = f->sess;
	s = fbr_sess_get(slot);
	state = s ? fbr_sess_state(s) : FBR_FREE;
	if (f->pif == pif && fbr_sess_lasts(f) &&
	    (!ext || f->addr == ext ||
	     /* Clients come to any address of the host's. */
	     (s && (s->bits & FBR_S_PUBLISHED) && u && fbr_delivers(skb, u->ifindex, f->addr))))
		return f;
	if (s && fbr_sess_claim(s, state))
		fbr_sess_free(slot);
	return NULL;
}

/* A published port answers with the host's port also when its flow has gone. */
static __always_inline void fbr_pub_answer(struct fbr_new *n)
{
	struct fbr_bind_key k = { .ip = n->fwd.saddr, .port = n->fwd.sport, .proto = n->fwd.proto };
	struct fbr_bind_key *host = bpf_map_lookup_elem(&fbr_pub_of, &k);

	/* Towards an address of the host's (hairpin.h) the source has to be that address. */
	if (!host || (n->ext == n->fwd.daddr && host->ip && host->ip != n->ext))
		return;
	n->published = true;
	n->eport = host->port;
	if (host->ip)
		n->ext = host->ip;
}

/* Creates the session of a container's first packet k, which leaves with the
 * address ext. As fbr_sess_create.
 */
static __always_inline enum fbr_reason
fbr_out_create(struct __sk_buff *skb, const struct fbr_flow_key *k, __be32 ext, __u32 pif)
{
	struct fbr_new n = { .fwd = *k, .ext = ext, .pif = pif };
	struct fbr_net *net = fbr_net_get(k->saddr);
	struct fbr_conf *c = fbr_conf_get();

	if (fbr_held())
		return FBR_UNSUPPORTED;
	n.net = net ? net->flags : 0;
	if (c && c->published)
		fbr_pub_answer(&n);
	/* An answer, to whoever has asked: the question's session has gone. */
	n.outside = n.published && k->proto == IPPROTO_UDP && ext != k->daddr;
	return fbr_sess_create(skb, &n);
}

/* Notes that a container has sent p through its flow f; keeps: and that the
 * mapping lives on.
 */
static __always_inline void fbr_out_seen(struct __sk_buff *skb, struct fbr_flow *f,
					 const struct fbr_pkt *p, bool keeps)
{
	__u64 now = fbr_now();
	struct fbr_session *s;
	struct fbr_nport *np;

	fbr_sess_track(skb, f->sess, p, true);
	if (p->tcp_flags & TCP_RST)
		return;
	f->seen = now;
	s = keeps ? fbr_sess_get(f->sess) : NULL;
	np = s && (s->bits & FBR_S_OUT_ONLY) ? fbr_nport_at(p->proto, f->port) : NULL;
	if (np)
		np->used_at = now;
}

/* What a packet may do to its flow. */
enum fbr_snat_mode {
	FBR_SNAT_FORWARDED = 1, /* passed FORWARD from its own bridge: may create and lease */
	FBR_SNAT_HOST = 2, /* the host's own packet with a container's source: existing flow only */
	/* From a network that is not translated: only what answers a published port,
	 * else FBR_FOREIGN and untouched.
	 */
	FBR_SNAT_ROUTED = 3,
};

static __always_inline bool fbr_syn_ack(const struct fbr_pkt *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* Translates the source of a container's packet at the uplink's egress.
 * Returns FBR_NONE (translated) or the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_snat(struct __sk_buff *skb, const struct fbr_pkt *p,
				      const struct fbr_dev *u, const struct fbr_dev *port,
				      __u32 mode)
{
	if (!p || !u || !port)
		return FBR_UNSUPPORTED;

	bool routed = mode == FBR_SNAT_ROUTED;
	bool forwarded = mode == FBR_SNAT_FORWARDED || (routed && skb->ingress_ifindex);
	__u64 now = fbr_now();
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_session *s;
	struct fbr_flow_key k;
	struct fbr_flow *f;
	enum fbr_reason why;
	__be32 ext = 0;
	__u16 mtu = 0;
	__u32 bits, secs;

	if (!c || (p->kind != FBR_L4_PORTS && p->kind != FBR_L4_ECHO_REQ))
		return FBR_UNSUPPORTED;
	fbr_key(&k, p);
	if (routed && !fbr_flow_exists(&k))
		return FBR_FOREIGN;
	if (forwarded) {
		ext = fbr_route(skb, u, p->daddr, &mtu);
		if (!ext)
			return FBR_NO_UPLINK;
	}
	f = fbr_flow_live(skb, u, &k, port->ifindex, ext);
	if (!f && routed)
		return FBR_FOREIGN;
	/* What answers a SYN begins nothing: whoever has asked asks again. */
	if (!f && (!forwarded || (p->tcp_flags & TCP_RST) || fbr_syn_ack(p)))
		return FBR_UNSUPPORTED;
	if (!f) {
		why = fbr_out_create(skb, &k, ext, port->ifindex);
		/* Another CPU may just have created the same flow. */
		f = fbr_flow_get(&k);
		if (!f)
			return why ? why : FBR_NAT_FULL;
	}
	fbr_out_seen(skb, f, p, forwarded);
	s = fbr_sess_get(f->sess);
	if (!s)
		return FBR_NAT_FULL;
	bits = s->bits;
	secs = fbr_timeout(k.proto, k.dport, bits);
	if (forwarded) {
		if (!p->frag && !(port->flags & FBR_DEV_KERNEL_PATH) && !fbr_closed_bits(bits) &&
		    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))) {
			__u8 macs[12] = {};

			/* A redirect to a device without L2 header takes the frame's off. */
			if (!p->l3 || !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
				fbr_lease_grant(&k, f, c, macs, u->ifindex, mtu, now,
						(__u64)secs * cfg_hz);
		}
		fbr_ct_extend(skb, &k, secs);
	}
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, true, f->addr, f->port) ? FBR_UNSUPPORTED : FBR_NONE;
}

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

/* Whether a session that stands in the way of a packet of the host's or of a
 * neighbour's goes on from another port. An established TCP connection cannot,
 * and a published port has no other. A RST asks for nothing.
 */
static __always_inline bool fbr_gives_way(const struct fbr_session *s, const struct fbr_pkt *p)
{
	__u32 bits = s->bits;

	if ((bits & (FBR_S_HOST | FBR_S_PUBLISHED)) || (p->tcp_flags & TCP_RST))
		return false;
	return p->proto != IPPROTO_TCP || !fbr_established(bits) || fbr_closed_bits(bits);
}

/* Moves a container's session to another external port; n is room for that. One
 * that is over only ends.
 */
static __always_inline void fbr_move(struct __sk_buff *skb, struct fbr_new *n, __u32 slot,
				     struct fbr_session *s)
{
	__u32 state = fbr_sess_state(s);
	/* Begun outside, it has no other port. */
	bool over = fbr_closed_bits(s->bits) || (s->bits & FBR_S_INBOUND);
	struct fbr_net *net;

	n->fwd = s->fwd;
	n->ext = s->ext;
	n->pif = s->pif;
	n->payer = s->payer;
	if (!fbr_sess_claim(s, state))
		return;
	fbr_sess_free(slot);
	net = fbr_net_get(n->fwd.saddr);
	if (over || !net || !fbr_dev_get(n->pif))
		return;
	n->net = net->flags;
	fbr_sess_create(skb, n);
}

/* A packet of the host, or of a neighbour NAT on the same address, with a
 * source port of our range. The port is noted, so that the allocator takes it
 * last, and a flow of ours that uses the very tuple moves to another port. Where
 * it cannot, the packet gets a port of its own (a session of kind host), as it
 * would from the kernel's NAT. Returns FBR_NONE or a reason to drop.
 */
__fbr_global enum fbr_reason fbr_snat_host(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_UNSUPPORTED;

	__u64 now = fbr_now();
	struct fbr_flow_key k, rk;
	struct fbr_session *s;
	struct fbr_nport *np;
	struct fbr_flow *f;

	fbr_key(&k, p);
	f = fbr_flow_live(skb, NULL, &k, 0, 0);
	if (!f) {
		struct fbr_new n = { .fwd = k, .ext = p->saddr, .moved = true };
		bool free, moves;

		fbr_reverse_key(&rk, &k, p->saddr, p->sport);
		f = fbr_flow_get(&rk);
		free = !f || !(f->kind & FBR_IN) || !fbr_sess_lasts(f);
		s = free ? NULL : fbr_sess_get(f->sess);
		moves = s && fbr_gives_way(s, p);
		if (free || moves) {
			np = fbr_nport_at(p->proto, p->sport);
			if (np && !(p->tcp_flags & TCP_RST))
				np->noted_at = now;
			if (moves)
				fbr_move(skb, &n, f->sess, s);
			return FBR_NONE;
		}
		fbr_sess_create(skb, &n);
		f = fbr_flow_get(&k);
		if (!f) {
			/* No room: the host goes first, and our flow gives way. */
			fbr_flow_end(&rk);
			return FBR_NONE;
		}
	}
	fbr_sess_track(skb, f->sess, p, true);
	f->seen = now;
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, true, f->addr, f->port) ? FBR_UNSUPPORTED : FBR_NONE;
}

/* The inbound entry for k, or NULL if there is none, its time is over, or its port gone. */
static __always_inline struct fbr_flow *fbr_inbound_live(const struct fbr_flow_key *k)
{
	struct fbr_flow *f = fbr_flow_get(k);

	if (!f || !(f->kind & FBR_IN) || !fbr_sess_lasts(f))
		return NULL;
	return (f->kind & FBR_HOST) || fbr_dev_get(f->pif) ? f : NULL;
}

/* Whether the filter of the mapping that owns k's external port lets its remote
 * in (RFC 4787 REQ-8, RFC 5382 REQ-3): on a live mapping, and only where an
 * answer would leave with the address the packet came for. A mapping lives as
 * long as its owner sends: an outsider cannot keep it (RFC 7857 section 7).
 * Completes n.
 */
static __always_inline bool fbr_filter_admits(struct __sk_buff *skb, const struct fbr_dev *u,
					      const struct fbr_flow_key *k, struct fbr_new *n)
{
	struct fbr_nport *np = fbr_nport_at(k->proto, k->dport);
	struct fbr_peer_key pk = { .nport = fbr_nport_index(k->proto, bpf_ntohs(k->dport)),
				   .addr = k->saddr };
	struct fbr_net *net;
	__u16 mtu = 0;

	if (!np || !np->bound || !np->pif)
		return false;
	if (fbr_now() - np->used_at >=
	    (__u64)(k->proto == IPPROTO_TCP ? cfg_to_tcp : cfg_to_udp) * cfg_hz)
		return false;
	net = fbr_net_get(np->ip);
	if (!net)
		return false;
	n->net = net->flags;
	if (!(n->net & FBR_NET_EIF) &&
	    !((n->net & FBR_NET_ADF) && bpf_map_lookup_elem(&fbr_peer, &pk)))
		return false;
	if (fbr_host_receives(skb, k))
		return false;
	/* Hairpinned packets come from the very address they go to. */
	if (k->saddr != k->daddr && fbr_route(skb, u, k->saddr, &mtu) != k->daddr)
		return false;
	n->fwd.saddr = np->ip;
	n->fwd.sport = np->port;
	n->pif = np->pif;
	return true;
}

/* Whether a packet may be the first of a flow. */
static __always_inline bool fbr_first_packet(const struct fbr_pkt *p)
{
	return p->kind == FBR_L4_PORTS &&
	       (p->proto == IPPROTO_UDP ||
		(p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN);
}

/* Makes a session for a packet with the inbound key k that found none, if it is
 * a first packet and the publication pub, or else a filter, lets it in. payer is
 * the container that sends it, 0 for outside. Returns FBR_FOREIGN if nobody is
 * asked for, or why there is no room.
 */
static __always_inline enum fbr_reason fbr_admit_by(struct __sk_buff *skb, const struct fbr_pkt *p,
						    const struct fbr_dev *u,
						    const struct fbr_flow_key *k,
						    const struct fbr_pub *pub, __u32 payer)
{
	struct fbr_new n = {
		.ext = k->daddr, .eport = k->dport, .inbound = true, .outside = !payer
	};

	if (!fbr_first_packet(p) || fbr_held())
		return FBR_FOREIGN;
	n.fwd.daddr = k->saddr;
	n.fwd.dport = k->sport;
	n.fwd.proto = k->proto;
	if (pub) {
		n.published = true;
		n.fwd.saddr = pub->ip;
		n.fwd.sport = pub->port;
		n.pif = pub->pif;
	} else if (!fbr_filter_admits(skb, u, k, &n)) {
		return FBR_FOREIGN;
	}
	n.payer = payer;
	return fbr_sess_create(skb, &n);
}

/* The same for a packet from outside, whose address is none of a container's. */
__fbr_global enum fbr_reason fbr_admit(struct __sk_buff *skb, const struct fbr_pkt *p,
				       const struct fbr_dev *u, struct fbr_flow_key *k)
{
	if (!p || !u || !k)
		return FBR_FOREIGN;

	struct fbr_conf *c = fbr_conf_get();
	bool look = c && c->published;

	if (!fbr_first_packet(p) || (fbr_net_get(k->saddr) && !fbr_lies_beyond(skb, u, k->saddr)))
		return FBR_FOREIGN;
	return fbr_admit_by(skb, p, u, k, look ? fbr_pub_find(skb, u, k) : NULL, 0);
}

/* Whether a packet from outside that belongs to no session may be of one that is
 * still to be brought over: the host must not answer it.
 */
__fbr_global bool fbr_may_be_carried(struct __sk_buff *skb, const struct fbr_dev *u,
				     const struct fbr_flow_key *k)
{
	if (!u || !k)
		return false;

	struct fbr_conf *c = fbr_conf_get();

	return c && fbr_held() && (fbr_in_range(c, k->dport) || fbr_pub_find(skb, u, k));
}

/* Translates the destination of a packet from outside whose flow is f, on the kernel path. */
__fbr_global enum fbr_reason fbr_unsnat(struct __sk_buff *skb, const struct fbr_pkt *p,
					struct fbr_flow_key *k)
{
	if (!p || !k)
		return FBR_UNSUPPORTED;

	struct fbr_flow *f = fbr_inbound_live(k);

	if (!f)
		return FBR_FOREIGN;
	fbr_sess_track(skb, f->sess, p, false);
	if (!(p->tcp_flags & TCP_RST))
		f->seen = fbr_now();
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, false, f->addr, f->port) ? FBR_UNSUPPORTED : FBR_NONE;
}

/* The outbound entry of the port's session to which a packet from outside belongs,
 * its destination the container's, or NULL; fwd gets its key. An ICMP error belongs
 * to the session of the packet that it quotes.
 */
static __always_inline struct fbr_flow *fbr_delivered_flow(struct __sk_buff *skb,
							   const struct fbr_pkt *p,
							   const struct fbr_dev *port,
							   struct fbr_flow_key *fwd)
{
	struct fbr_pkt in;
	struct fbr_flow *f;

	if (p->kind == FBR_L4_PORTS || p->kind == FBR_L4_ECHO_REP) {
		fbr_answer_key(fwd, p);
	} else if (p->kind == FBR_L4_ICMP_ERR) {
		if (fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), &in) || in.saddr != p->daddr)
			return NULL;
		fbr_key(fwd, &in);
	} else {
		return NULL;
	}
	f = fbr_flow_get(fwd);
	return f && (f->kind & FBR_OUT) && f->pif == port->ifindex ? f : NULL;
}

/* The same, where the packet may begin a flow. */
static __always_inline enum fbr_reason fbr_unsnat_first(struct __sk_buff *skb,
							const struct fbr_pkt *p,
							const struct fbr_dev *u,
							struct fbr_flow_key *k)
{
	enum fbr_reason why = fbr_unsnat(skb, p, k);

	if (why == FBR_FOREIGN) {
		why = fbr_admit(skb, p, u, k);
		if (!why)
			why = fbr_unsnat(skb, p, k);
		else if (why == FBR_FOREIGN && fbr_may_be_carried(skb, u, k))
			why = FBR_UNSUPPORTED;
	}
	return why;
}

/* Whether a packet that the kernel delivers from an uplink to its port belongs to a
 * session. If so it renews the lease of the inbound direction.
 */
__fbr_global bool fbr_lease_inbound(struct __sk_buff *skb, const struct fbr_pkt *p,
				    const struct fbr_dev *port)
{
	if (!p || !port)
		return false;

	struct fbr_conf *c = fbr_conf_get();
	struct fbr_flow_key fwd, rev;
	__u64 now = fbr_now(), end;
	struct fbr_session *s;
	struct fbr_flow *f;
	__u8 macs[12];
	__u32 secs;

	f = fbr_delivered_flow(skb, p, port, &fwd);
	if (!f || !c)
		return false;
	if (p->frag || p->kind == FBR_L4_ICMP_ERR)
		return true;
	s = fbr_sess_get(f->sess);
	if (!s)
		return false;
	fbr_reverse_key(&rev, &fwd, f->addr, f->port);
	f = fbr_flow_get(&rev);
	if (!f || !(f->kind & FBR_IN))
		return false;
	secs = fbr_timeout(fwd.proto, fwd.dport, s->bits);
	/* This packet does not keep alive what only outbound packets do. */
	end = s->bits & FBR_S_OUT_ONLY ? fbr_sess_expires(f->sess) : now + (__u64)secs * cfg_hz;
	if (!(port->flags & FBR_DEV_KERNEL_PATH) && !fbr_closed_bits(s->bits) && end > now &&
	    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
	    !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		fbr_lease_grant(&rev, f, c, macs, port->ifindex, port->mtu, now, end - now);
	fbr_ct_extend(skb, &fwd, secs);
	return true;
}

#endif
