/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What connection tracking knows about a packet. */
#ifndef FBR_CT_H
#define FBR_CT_H

#include "../include/bpf/bpf_core_read.h"
#include "config.h"
#include "device.h"
#include "kctx.h"
#include "nat.h"
#include "parse.h"

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple_len, struct bpf_ct_opts___12 *opts,
					 __u32 opts_len) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *ct) __ksym __weak;
extern int bpf_ct_change_timeout(struct nf_conn *ct, __u32 ms) __ksym __weak;

#define FBR_CT_REPLY   1 /* enum ip_conntrack_dir */
#define FBR_CT_ASSURED 4 /* IPS_ASSURED of enum ip_conntrack_status */

/* Fills a tuple with the addresses and ports of k, for a lookup of a connection or a socket. */
static __always_inline void fbr_ct_tuple(struct bpf_sock_tuple *t, const struct fbr_flow_key *k)
{
	fbr_addr_put(t->FBR_TUPLE.saddr, k->saddr);
	fbr_addr_put(t->FBR_TUPLE.daddr, k->daddr);
	t->FBR_TUPLE.sport = k->sport;
	t->FBR_TUPLE.dport = k->dport;
}

/* Whether conntrack knows the connection of packet t: a neighbour NAT's, or the host's own.
 * o gives the protocol and receives the packet's direction. A connection begun outside
 * counts only once it is assured. Any packet makes an entry, its sender may have forged the
 * address, and the host's RST counts as a reply.
 */
static __always_inline bool fbr_ct_exists(struct __sk_buff *skb, struct bpf_sock_tuple *t,
					  struct bpf_ct_opts___12 *o)
{
	struct nf_conn *ct;
	bool known;

	if (o->l4proto == FBR_ICMP || !cfg_conntrack)
		return false;
	ct = bpf_skb_ct_lookup(skb, t, FBR_TUPLE_LEN, o, sizeof(*o));
	if (!ct)
		return false;
	known = o->dir == FBR_CT_REPLY || !bpf_core_field_exists(ct->status) ||
		(ct->status & FBR_CT_ASSURED);
	bpf_ct_release(ct);
	return known;
}

/* The entry that connection tracking has made or found for the packet, or NULL if it has
 * not seen the packet.
 */
static __always_inline struct nf_conn *fbr_ct_entry(struct sk_buff *k)
{
	return bpf_core_field_exists(k->_nfct) ? (struct nf_conn *)(k->_nfct & NFCT_PTRMASK) : NULL;
}

/* The status of the packet's connection, bits IPS_*; 0 if connection tracking has not seen
 * the packet.
 */
static __always_inline __u32 fbr_ct_status(struct sk_buff *k)
{
	struct nf_conn *ct = fbr_ct_entry(k);

	return ct && bpf_core_field_exists(ct->status) ? BPF_CORE_READ(ct, status) : 0;
}

/* Whether connection tracking translates the packet's connection because of somebody else's
 * rule.
 */
static __always_inline bool fbr_ct_translates(struct __sk_buff *skb)
{
	return fbr_ct_status(bpf_cast_to_kern_ctx(skb)) & IPS_NAT_MASK;
}

/* Whether connection tracking leaves the packet's connection untranslated. False, too, where
 * that cannot be told: the module was loaded after the programs.
 */
static __always_inline bool fbr_ct_leaves(struct __sk_buff *skb)
{
	struct nf_conn *ct = fbr_ct_entry(bpf_cast_to_kern_ctx(skb));

	return !ct ||
	       (bpf_core_field_exists(ct->status) && !(BPF_CORE_READ(ct, status) & IPS_NAT_MASK));
}

/* Whether a rule of the host has changed the destination of the packet's connection (DNAT):
 * for example a port published by CNI's portmap.
 */
static __always_inline bool fbr_ct_led(struct sk_buff *k)
{
	return fbr_ct_status(k) & IPS_DST_NAT;
}

/* Whether the packet is an answer, or an ICMP error, to a connection whose source a rule of
 * the host translates (SNAT, masquerade): the container's way out by a device that is no
 * uplink.
 */
static __always_inline bool fbr_ct_returns(struct sk_buff *k)
{
	return (fbr_ct_status(k) & IPS_SRC_NAT) && (k->_nfct & ~NFCT_PTRMASK) >= IP_CT_IS_REPLY;
}

/* Whether the packet belongs to a connection that has begun, or is about one. */
static __always_inline bool fbr_ct_goes_on(struct sk_buff *k)
{
	__u32 info = k->_nfct & ~NFCT_PTRMASK;

	return fbr_ct_entry(k) && info != IP_CT_NEW && info != IP_CT_UNTRACKED;
}

/* Whether a helper (FTP, SIP, TFTP) follows the packet's connection: it has to see every
 * packet.
 */
__fbr_global bool fbr_ct_helped(struct __sk_buff *skb)
{
	struct nf_conn *ct = fbr_ct_entry(bpf_cast_to_kern_ctx(skb));
	struct nf_conn_help *help;
	struct nf_ct_ext *ext;
	__u8 at;

	if (!ct || !bpf_core_field_exists(ct->ext))
		return false;
	ext = BPF_CORE_READ(ct, ext);
	at = ext ? BPF_CORE_READ(ext, offset[0]) : 0;
	help = (void *)ext + at;
	return at && BPF_CORE_READ(help, helper);
}

/* Whether a container's packet answers a connection that a rule of the host directs to the
 * container (DNAT), or is an ICMP error about one.
 *
 * Connection tracking has not seen the packet yet. An internal network gets no answers
 * either. A later fragment has no ports: the kernel drops it unless the first one came, and
 * fbr_guard sees the reassembled packet.
 */
__fbr_global bool fbr_ct_answers(struct __sk_buff *skb)
{
	struct bpf_ct_opts___12 o = { .netns_id = -1 };
	struct bpf_sock_tuple t;
	struct fbr_flow_key k;
	struct fbr_pkt p, in;
	struct nf_conn *ct;
	struct fbr_net *n;
	bool led;

	if (!cfg_conntrack || fbr_parse(skb, &p))
		return false;
	n = fbr_net_get(p.daddr);
	if (!n || (n->flags & FBR_NET_INTERNAL))
		return false;
	if (p.frag & FBR_FRAG_LATER)
		return true;
	if (p.kind == FBR_L4_ICMP_ERR) {
		if (p.frag || fbr_parse_at(skb, p.l4 + sizeof(struct icmphdr), &in) ||
		    in.kind != FBR_L4_PORTS || !fbr_addr_eq(in.saddr, p.daddr) ||
		    !fbr_addr_eq(in.daddr, p.saddr))
			return false;
		fbr_answer_key(&k, &in);
	} else if (p.kind == FBR_L4_PORTS) {
		fbr_key(&k, &p);
	} else {
		return false;
	}
	fbr_ct_tuple(&t, &k);
	o.l4proto = k.proto;
	ct = bpf_skb_ct_lookup(skb, &t, FBR_TUPLE_LEN, &o, sizeof(o));
	if (!ct)
		return false;
	led = o.dir == FBR_CT_REPLY && bpf_core_field_exists(ct->status) &&
	      (ct->status & IPS_DST_NAT);
	bpf_ct_release(ct);
	return led;
}

/* Extends the timeout of an answered UDP connection in conntrack to secs. Otherwise
 * conntrack forgets the connection long before its session ends, and a firewall that
 * accepts only ESTABLISHED cuts it off.
 */
__fbr_global int fbr_ct_extend(struct __sk_buff *skb, const struct fbr_flow_key *fwd, __u32 secs)
{
	if (!fwd)
		return 0;

	struct bpf_sock_tuple t;
	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = IPPROTO_UDP };
	struct nf_conn *ct;

	if (fwd->proto != IPPROTO_UDP || !cfg_conntrack || !fbr_ct_entry(bpf_cast_to_kern_ctx(skb)))
		return 0;
	fbr_ct_tuple(&t, fwd);
	ct = bpf_skb_ct_lookup(skb, &t, FBR_TUPLE_LEN, &o, sizeof(o));
	if (!ct)
		return 0;
	bpf_ct_change_timeout(ct, secs * 1000);
	bpf_ct_release(ct);
	return 0;
}

#endif
