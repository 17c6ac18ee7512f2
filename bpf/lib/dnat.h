/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports on the kernel's path: the kernel's own NAT translates, so that rules of
 * the host see what a DNAT rule would have made ("ct status dnat", "ct original proto-dst",
 * --ctorigdstport), and conntrack -L shows it.
 *
 * The session is like any other. Where a program would rewrite the packet, it enters the
 * connection in conntrack instead, and nf_nat translates this packet and all others of the
 * kernel's path, both ways. The fast path translates by the session.
 *
 * The kernel translates only if conntrack and nf_nat have their hooks in the namespace,
 * which the table "ip fastbr" keeps there. Without conntrack's no rule can ask it. Without
 * nf_nat's, and for whatever else cannot be entered, the programs rewrite.
 *
 * A packet that the kernel was to translate, and did not, would reach the host's own
 * sockets: conntrack calls it invalid, or a rule keeps it from conntrack (notrack) or from
 * this entry (a zone). fbr_input drops it. It recognises it by skb->hash, as in hair.h.
 */
#ifndef FBR_DNAT_H
#define FBR_DNAT_H

#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "clock.h"
#include "config.h"
#include "ct.h"
#include "device.h"
#include "hair.h"
#include "kctx.h"
#include "nat.h"
#include "parse.h"
#include "publish.h"
#include "reason.h"
#include "session.h"
#include "stats.h"

extern struct nf_conn___init *bpf_skb_ct_alloc(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					       __u32 tuple_len, struct bpf_ct_opts___12 *opts,
					       __u32 opts_len) __ksym __weak;
extern int bpf_ct_set_nat_info(struct nf_conn___init *ct, union nf_inet_addr *addr, int port,
			       enum nf_nat_manip_type manip) __ksym __weak;
extern struct nf_conn *bpf_ct_insert_entry(struct nf_conn___init *ct) __ksym __weak;

#define FBR_DNAT_HOOKS_MAX 32 /* hooks looked at */
#define FBR_DNAT_MISSED    60 /* seconds for which a publication is not left to the kernel */
#define FBR_CT_TIME_WAIT   7  /* enum tcp_conntrack: from here on, the connection is over */

enum fbr_nat_hooks {
	FBR_NAT_TRACKS = 1,     /* conntrack sees what comes in */
	FBR_NAT_TRANSLATES = 2, /* nf_nat translates it */
};

/* The result of the last look at the namespace's hooks. */
static struct {
	__u64 at; /* jiffies */
	__u32 found;
} fbr_nat_hooks;

/* Looks for the hooks of conntrack and nf_nat. Those of nft and of BPF have a type. */
__fbr_global __u32 fbr_nat_look(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net *net = BPF_CORE_READ(k->dev, nd_net.net);
	struct nf_hook_entries *e = NULL;
	struct nf_hook_ops *ops = NULL;
	__u32 i, n, found = 0;

	if (!bpf_core_field_exists(net->nf.FBR_NF_HOOKS))
		return 0;
	bpf_core_read(&e, sizeof(e), &net->nf.FBR_NF_HOOKS[NF_INET_PRE_ROUTING]);
	if (!e)
		return 0;
	n = BPF_CORE_READ(e, num_hook_entries);
	for (i = 0; i < n && i < FBR_DNAT_HOOKS_MAX; i++) {
		bpf_probe_read_kernel(
			&ops, sizeof(ops),
			(void *)e + bpf_core_field_offset(struct nf_hook_entries, hooks) +
				n * bpf_core_type_size(struct nf_hook_entry) + i * sizeof(ops));
		if (BPF_CORE_READ_BITFIELD_PROBED(ops, hook_ops_type))
			continue;
		switch (BPF_CORE_READ(ops, priority)) {
		case NF_IP_PRI_CONNTRACK:
			found |= FBR_NAT_TRACKS;
			break;
		case NF_IP_PRI_NAT_DST:
			found |= FBR_NAT_TRANSLATES;
		}
	}
	return found;
}

/* The hooks that are there, as of this jiffy. */
static __always_inline __u32 fbr_nat_hooked(struct __sk_buff *skb)
{
	__u64 now = fbr_now();

	if (fbr_nat_hooks.at != now) {
		fbr_nat_hooks.found = fbr_nat_look(skb);
		fbr_nat_hooks.at = now;
	}
	return fbr_nat_hooks.found;
}

/* Whether the kernel has just failed to translate for the publication of k's destination. */
static __always_inline bool fbr_dnat_fails(const struct fbr_flow_key *k)
{
	struct fbr_pub *pub = fbr_pub_get(k->daddr, k->dport, k->proto);

	return !pub ||
	       (pub->missed_at && (__u32)fbr_now() - pub->missed_at < FBR_DNAT_MISSED * cfg_hz);
}

/* Whether the entry ct leads a client's packets where the session does. */
static __always_inline bool fbr_dnat_leads(const struct nf_conn *ct, const struct fbr_flow *f)
{
	return (BPF_CORE_READ(ct, status) & IPS_DST_NAT) &&
	       fbr_addr_eq(FBR_CT_ADDR(ct, tuplehash[FBR_CT_REPLY].tuple.src), f->addr) &&
	       BPF_CORE_READ(ct, tuplehash[FBR_CT_REPLY].tuple.src.u.all) == f->port;
}

/* Enters the connection of a client's packet with the key k, led to where f does. Returns
 * whether it is entered. Another connection may have one of its two tuples.
 */
static __always_inline bool fbr_dnat_enter(struct __sk_buff *skb, struct bpf_sock_tuple *t,
					   struct bpf_ct_opts___12 *o, const struct fbr_flow *f)
{
	union nf_inet_addr to = fbr_nf_addr(f->addr);
	struct nf_conn___init *new = bpf_skb_ct_alloc(skb, t, FBR_TUPLE_LEN, o, sizeof(*o));
	struct nf_conn *ct;
	bool leads;

	if (!new)
		return false;
	bpf_ct_set_nat_info(new, &to, bpf_ntohs(f->port), NF_NAT_MANIP_DST);
	ct = bpf_ct_insert_entry(new);
	if (!ct)
		return false;
	leads = fbr_dnat_leads(ct, f);
	if (!leads)
		bpf_ct_change_timeout(ct, 0);
	bpf_ct_release(ct);
	return leads;
}

/* How a packet may meet conntrack's entry for its connection. */
enum fbr_dnat_meets {
	FBR_DNAT_GOES_ON = 0, /* there is one, or it does not get one */
	FBR_DNAT_BEGINS = 1,  /* it may be the first packet that conntrack sees */
	/* The same for a SYN. A client opens a connection from the port of one that is over.
	 * Conntrack would replace the old connection's entry by one without translation
	 * (nf_conntrack_tcp_packet), so ours is replaced first.
	 */
	FBR_DNAT_OPENS = 2,
};

static __always_inline enum fbr_dnat_meets fbr_dnat_meets(const struct fbr_pkt *p)
{
	const __u8 shown = p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST);

	if (p->kind != FBR_L4_PORTS)
		return FBR_DNAT_GOES_ON;
	if (p->proto == IPPROTO_TCP && shown == TCP_SYN)
		return FBR_DNAT_OPENS;
	return p->proto == IPPROTO_UDP || shown == TCP_ACK ? FBR_DNAT_BEGINS : FBR_DNAT_GOES_ON;
}

/* Whether the kernel will translate a packet from outside. k is the key of f, of the
 * packet's session; meets is an enum fbr_dnat_meets. If not, the caller rewrites, and no
 * entry leads the packet elsewhere.
 */
__fbr_global bool fbr_dnat(struct __sk_buff *skb, const struct fbr_flow_key *k,
			   const struct fbr_flow *f, __u32 meets)
{
	if (!k || !f || !cfg_nat || !cfg_conntrack)
		return false;

	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = k->proto };
	struct fbr_session *s = fbr_sess_get(f->sess);
	struct bpf_sock_tuple t = {};
	bool leads, answers;
	struct nf_conn *ct;
	__u32 hooks;

	if (!s || !(s->bits & FBR_S_PUBLISHED) || fbr_addr_eq(f->addr, k->daddr) ||
	    !bpf_core_type_exists(struct nf_conn))
		return false;
	hooks = fbr_nat_hooked(skb);
	if (!(hooks & FBR_NAT_TRACKS) || fbr_dnat_fails(k))
		return false;
	fbr_ct_tuple(&t, k);
	ct = bpf_skb_ct_lookup(skb, &t, FBR_TUPLE_LEN, &o, sizeof(o));
	if (ct) {
		leads = (hooks & FBR_NAT_TRANSLATES) && fbr_dnat_leads(ct, f) &&
			!(meets == FBR_DNAT_OPENS &&
			  BPF_CORE_READ(ct, proto.tcp.state) >= FBR_CT_TIME_WAIT);
		answers = o.dir == FBR_CT_REPLY; /* to the host itself */
		if (!leads && !answers)
			bpf_ct_change_timeout(ct, 0);
		bpf_ct_release(ct);
		if (answers)
			return false;
		if (leads) {
			fbr_hair_tag(skb, f->sess);
			return true;
		}
		/* A lookup removes what has expired. */
		ct = bpf_skb_ct_lookup(skb, &t, FBR_TUPLE_LEN, &o, sizeof(o));
		if (ct) {
			bpf_ct_release(ct);
			return false;
		}
	}
	if (!(hooks & FBR_NAT_TRANSLATES) || !meets || !(s->bits & FBR_S_INBOUND) ||
	    !fbr_dnat_enter(skb, &t, &o, f))
		return false;
	fbr_hair_tag(skb, f->sess);
	return true;
}

/* Whether the packet's connection is one that fbr_dnat has entered. The kernel decides in
 * POSTROUTING whether to translate the source of every other one.
 */
static __always_inline bool fbr_dnat_entered(struct sk_buff *k)
{
	const __u32 all = IPS_DST_NAT | IPS_SRC_NAT_DONE | IPS_CONFIRMED;

	return (fbr_ct_status(k) & all) == (IPS_DST_NAT | IPS_CONFIRMED);
}

/* Finds the source that a packet had before the kernel translated it: k's address and port.
 * False if the packet is no answer to a connection whose destination is translated.
 */
static __always_inline bool fbr_dnat_answers(struct sk_buff *skb, struct fbr_flow_key *k)
{
	struct nf_conn *ct = fbr_ct_entry(skb);

	if (!fbr_ct_led(skb) || (skb->_nfct & ~NFCT_PTRMASK) < IP_CT_IS_REPLY)
		return false;
	k->saddr = FBR_CT_ADDR(ct, tuplehash[FBR_CT_REPLY].tuple.src);
	k->sport = BPF_CORE_READ(ct, tuplehash[FBR_CT_REPLY].tuple.src.u.all);
	return true;
}

/* Whether a packet in INPUT, in front of the host's sockets, is one that the kernel was to
 * translate for a published port.
 */
static __always_inline bool fbr_dnat_missed(struct bpf_nf_ctx *ctx)
{
	struct sk_buff *skb = ctx->skb;
	__u32 hash = skb->hash, iif = skb->skb_iif;
	struct fbr_session *s;
	struct fbr_dev *u;
	struct l4ports ports;
	struct bpf_dynptr pkt;
	struct fbr_pub *pub;
	fbr_ip ip;

	s = fbr_hair_tagged(hash) ? fbr_sess_get(hash & FBR_HAIR_SLOT) : NULL;
	if (!s || !(s->bits & FBR_S_PUBLISHED) || bpf_dynptr_from_skb(skb, 0, &pkt) ||
	    bpf_dynptr_read(&ip, sizeof(ip), &pkt, 0, 0) || !fbr_addr_eq(ip.daddr, s->ext) ||
	    bpf_dynptr_read(&ports, sizeof(ports), &pkt, fbr_ip_len(&ip), 0))
		return false;
	if (ip.protocol == FBR_ICMP) {
		if (!fbr_icmp_is_error(*(__u8 *)&ports))
			return false;
	} else if (ip.protocol != s->fwd.proto || !fbr_addr_eq(ip.saddr, s->fwd.daddr) ||
		   ports.sport != s->fwd.dport || ports.dport != s->eport) {
		return false;
	}
	/* What is invalid has no entry, and says nothing about others. */
	pub = bpf_core_field_exists(skb->_nfct) && skb->_nfct
		      ? fbr_pub_get(s->ext, s->eport, s->fwd.proto)
		      : NULL;
	if (pub)
		pub->missed_at = (__u32)fbr_now() ?: 1;
	u = fbr_dev_get(iif);
	if (u)
		fbr_count_drop(u, FBR_UNSUPPORTED);
	return true;
}

#endif
