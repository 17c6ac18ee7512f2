/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translation of packets from outside, on the kernel's path. */
#ifndef FBR_IN_H
#define FBR_IN_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "claim.h"
#include "clock.h"
#include "config.h"
#include "create.h"
#include "ct.h"
#include "device.h"
#include "dnat.h"
#include "extport.h"
#include "flow.h"
#include "instance.h"
#include "lease.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "publish.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "session.h"
#include "socket.h"
#include "track.h"

/* The inbound entry for k. NULL if there is none, if its session has expired, or if its
 * port is gone. *port becomes the port; NULL for a session of the host.
 */
static __always_inline struct fbr_flow *fbr_inbound_of(const struct fbr_flow_key *k,
						       struct fbr_dev **port)
{
	struct fbr_flow *f = fbr_flow_get(k);

	*port = NULL;
	if (!f || !(f->kind & FBR_IN) || !fbr_sess_lasts(f))
		return NULL;
	if (f->kind & FBR_HOST)
		return f;
	*port = fbr_dev_get(fbr_flow_port(f));
	return *port ? f : NULL;
}

static __always_inline struct fbr_flow *fbr_inbound_live(const struct fbr_flow_key *k)
{
	struct fbr_dev *port;

	return fbr_inbound_of(k, &port);
}

/* Whether the filter of the mapping that owns k's external port admits the remote (RFC 4787
 * REQ-8, RFC 5382 REQ-3). The mapping must be live, and an answer must leave with the
 * address the packet came for. A mapping lives as long as its owner sends: an outsider
 * cannot keep it alive (RFC 7857 section 7). Completes n.
 */
__fbr_global6 bool fbr_filter_admits(struct __sk_buff *skb, const struct fbr_dev *u,
				     const struct fbr_flow_key *k, struct fbr_new *n)
{
	if (!k || !n)
		return false;

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
	/* A hairpinned packet comes from the very address that it goes to. */
	if (!fbr_addr_eq(k->saddr, k->daddr) && !fbr_bind_is(np, u, k->daddr) &&
	    !fbr_addr_eq(fbr_source(skb, u, fbr_dev_get(np->pif), FBR_ARG(np->ip),
				    FBR_ARG(k->saddr), &mtu),
			 k->daddr))
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

/* Creates a session for a first packet whose inbound key k has none, if the publication
 * pub, or without one the filter, admits it. payer is the container that sends it, 0 for
 * outside. Returns FBR_NOT_OURS if the packet is for nobody, or the reason why there is no
 * room.
 */
static __always_inline enum fbr_reason fbr_admit_by(struct __sk_buff *skb, const struct fbr_pkt *p,
						    const struct fbr_dev *u,
						    const struct fbr_flow_key *k,
						    const struct fbr_pub *pub, __u32 payer)
{
	FBR_SCRATCH_ZERO(fbr_new, new);

	if (!new || !fbr_first_packet(p) || fbr_held())
		return FBR_NOT_OURS;
	new->ext = k->daddr;
	new->eport = k->dport;
	new->inbound = true;
	new->outside = !payer;
	fbr_new_leaves(new, u ? u->ifindex : 0);
	new->fwd.daddr = k->saddr;
	new->fwd.dport = k->sport;
	new->fwd.proto = k->proto;
	if (pub) {
		new->published = true;
		new->fwd.saddr = pub->ip;
		new->fwd.sport = pub->port;
		new->pif = pub->pif;
	} else if (!fbr_filter_admits(skb, u, k, new)) {
		return FBR_NOT_OURS;
	}
	new->payer = payer;
	return fbr_sess_create(skb, new);
}

/* The same for a packet from outside. Its source must not be a container's address. */
__fbr_global enum fbr_reason fbr_admit(struct __sk_buff *skb, const struct fbr_pkt *p,
				       const struct fbr_dev *u, struct fbr_flow_key *k)
{
	if (!p || !u || !k)
		return FBR_NOT_OURS;

	struct fbr_conf *c = fbr_conf_get();
	bool look = c && c->published;
	struct fbr_pub *pub = NULL;
	struct fbr_dev *port;

	if (!fbr_first_packet(p) ||
	    (fbr_net_get(k->saddr) && !fbr_lies_beyond(skb, u, FBR_ARG(k->saddr))))
		return FBR_NOT_OURS;
	if (look) {
		pub = fbr_pub_find(skb, u, k);
		port = pub ? fbr_dev_get(pub->pif) : NULL;
		if (port && !fbr_dev_leads(port, u->ifindex))
			pub = NULL; /* it is not published here */
	}
	return fbr_admit_by(skb, p, u, k, pub, 0);
}

/* Whether a packet from outside without a session may belong to one that is still to be
 * brought over. The host must not answer it then.
 */
__fbr_global bool fbr_may_be_carried(struct __sk_buff *skb, const struct fbr_dev *u,
				     const struct fbr_flow_key *k)
{
	if (!u || !k)
		return false;

	struct fbr_conf *c = fbr_conf_get();

	return c && fbr_held() && (fbr_in_range(c, k->dport) || fbr_pub_find(skb, u, k));
}

/* Translates the destination of a packet from outside, come by the uplink u, that belongs to
 * the flow under k, on the kernel's path, or leaves that to the kernel.
 */
__fbr_global enum fbr_reason fbr_unsnat(struct __sk_buff *skb, const struct fbr_pkt *p,
					const struct fbr_dev *u, struct fbr_flow_key *k)
{
	if (!p || !u || !k)
		return FBR_UNSUPPORTED;

	struct fbr_dev *port;
	struct fbr_flow *f = fbr_inbound_of(k, &port);

	if (!f)
		return FBR_NOT_OURS;
	if (port && !fbr_dev_leads(port, u->ifindex))
		return FBR_DIRECT;
	fbr_sess_track(skb, f->sess, p, false);
	if (!(p->tcp_flags & TCP_RST))
		f->seen = fbr_now();
	if (fbr_dnat(skb, k, f, fbr_dnat_meets(p)))
		return FBR_NONE;
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, false, FBR_ARG(f->addr), f->port) ? FBR_UNSUPPORTED
									 : FBR_NONE;
}

/* The outbound entry of the session that a packet from outside belongs to, or NULL. The
 * packet's destination is already the container's. fwd receives the entry's key. An ICMP
 * error belongs to the session of the packet that it quotes.
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
		if (fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), &in) ||
		    !fbr_addr_eq(in.saddr, p->daddr))
			return NULL;
		fbr_key(fwd, &in);
	} else {
		return NULL;
	}
	f = fbr_flow_get(fwd);
	/* An allowed address may have moved here from the port that has begun the session. */
	return f && (f->kind & FBR_OUT) &&
			       (f->iif == port->ifindex || fbr_port_also(port, FBR_ARG(p->daddr)))
		       ? f
		       : NULL;
}

/* The same for a packet that may begin a flow. */
static __always_inline enum fbr_reason fbr_unsnat_first(struct __sk_buff *skb,
							const struct fbr_pkt *p,
							const struct fbr_dev *u,
							struct fbr_flow_key *k)
{
	enum fbr_reason why = fbr_unsnat(skb, p, u, k);

	if (why == FBR_NOT_OURS) {
		why = fbr_admit(skb, p, u, k);
		if (!why)
			why = fbr_unsnat(skb, p, u, k);
		else if (why == FBR_NOT_OURS && fbr_may_be_carried(skb, u, k))
			why = FBR_UNSUPPORTED;
	}
	return why;
}

/* Whether a packet that the kernel delivers from an uplink to its port belongs to a
 * session. If so, renews the inbound lease.
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
	struct fbr_dev *u;
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
	/* This packet keeps no session alive that lives on outbound packets only. */
	end = s->bits & FBR_S_OUT_ONLY ? fbr_sess_expires(f->sess) : now + (__u64)secs * cfg_hz;
	u = fbr_dev_get(skb->ingress_ifindex);
	if (u && !(u->flags & FBR_DEV_QUEUES) && !(port->flags & FBR_DEV_KERNEL_ROUTED) &&
	    !fbr_closed_bits(s->bits) && end > now &&
	    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) && !fbr_ct_helped(skb) &&
	    !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		fbr_lease_grant(&rev, f, c, macs, u->ifindex, port->ifindex, port->mtu, now,
				end - now);
	fbr_ct_extend(skb, &fwd, secs);
	return true;
}

#endif
