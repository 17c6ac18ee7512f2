/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hairpinning: a container reaches a container (another, one of another
 * network, or itself) by an address of the host's and an external or published
 * port (RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7).
 *
 * There are two sessions, as if the packet had left and come back: the
 * sender's, whose remote is the host's address and which owns an external port,
 * and the receiver's, whose remote is that port. Whether the receiver's exists,
 * or may be made, is the filter's or the publication's business as for anybody
 * outside. fbr_port_in translates the destination, fbr_port_out the source, and
 * between them the kernel routes and filters a packet with the two containers'
 * own addresses: a source address of the host's would be a martian on the
 * bridge. Such packets always take the kernel's path.
 *
 * fbr_port_out and fbr_guard tell them by skb->hash, which nothing on that way
 * changes or lets anybody filter by: the instance's random bits and the sender's
 * slot. What they find there is compared with the packet: a wrong guess by a
 * container translates its own packet into its own external port. What the host
 * itself sends about such a packet, an error or a RST, has no such hash: fbr_hair
 * leads to the sender's session then.
 */
#ifndef FBR_HAIRPIN_H
#define FBR_HAIRPIN_H

#include "../include/bpf/bpf_helpers.h"
#include "claim.h"
#include "config.h"
#include "ct.h"
#include "flow.h"
#include "frag.h"
#include "icmp.h"
#include "in.h"
#include "maps.h"
#include "out.h"
#include "parse.h"
#include "publish.h"
#include "reason.h"
#include "refusal.h"
#include "session.h"
#include "track.h"
#include "uplink.h"

#define FBR_HAIR_SLOT 0x3fffff /* datapath.FlowsMaxLimit - 1 */

static __always_inline void fbr_hair_tag(struct __sk_buff *skb, __u32 slot)
{
	bpf_set_hash(skb, (cfg_mark & ~FBR_HAIR_SLOT) | (slot & FBR_HAIR_SLOT));
}

static __always_inline bool fbr_hair_tagged(__u32 hash)
{
	return cfg_mark && !((hash ^ cfg_mark) & ~FBR_HAIR_SLOT);
}

/* The session in slot if it is the sender's of a hairpinned packet from saddr, or NULL. */
static __always_inline struct fbr_session *fbr_hair_sender(__u32 slot, __be32 saddr)
{
	struct fbr_session *s = fbr_sess_get(slot);

	return s && fbr_is_live(fbr_sess_state(s)) && s->fwd.saddr == saddr &&
			       s->ext == s->fwd.daddr
		       ? s
		       : NULL;
}

/* The sender's session of a hairpinned packet with this hash and source, or NULL. */
static __always_inline struct fbr_session *fbr_hair_session(__u32 hash, __be32 saddr)
{
	return fbr_hair_tagged(hash) ? fbr_hair_sender(hash & FBR_HAIR_SLOT, saddr) : NULL;
}

/* Where the sender's slot of a packet that the kernel routes so is noted. */
static __always_inline __u32 *fbr_hair_hint(const struct fbr_pkt *p, __be32 daddr, __be16 dport)
{
	__u32 i = fbr_frag_hash(p->saddr, daddr, (__u32)p->sport << 16 | dport) % FBR_HAIR_HINTS;

	return bpf_map_lookup_elem(&fbr_hair, &i);
}

/* The key of a receiver's inbound entry: both ends are the host's address. */
static __always_inline void fbr_hair_key(struct fbr_flow_key *k, __be32 host, __be16 sport,
					 __be16 dport, __u8 proto)
{
	__builtin_memset(k, 0, sizeof(*k));
	k->saddr = host;
	k->daddr = host;
	k->sport = sport;
	k->dport = dport;
	k->proto = proto;
}

/* Whether a container's packet to addr would end at the host. One to an address
 * without a route would, too: nobody else can be meant.
 */
__fbr_global bool fbr_is_host(struct __sk_buff *skb, const struct fbr_dev *p, __be32 addr)
{
	if (!p)
		return false;

	struct fbr_dev *br = fbr_dev_get(p->bridge);
	struct bpf_fib_lookup fib = {
		.family = AF_INET,
		.ifindex = p->bridge,
		.ipv4_src = p->ip,
		.ipv4_dst = addr,
	};

	if (fbr_loopback_or_zero(addr) || fbr_multicast(addr) || addr == 0xffffffff)
		return false;
	if (br && br->ip == addr)
		return true;
	return bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SKIP_NEIGH) ==
		       BPF_FIB_LKUP_RET_NOT_FWDED &&
	       !fbr_net_broadcast(addr);
}

/* A container's ICMP error about a hairpinned packet that it got: gives it the
 * packet's sender as its destination, in the quote, too. As fbr_hairpin.
 */
__fbr_global enum fbr_reason fbr_hairpin_error(struct __sk_buff *skb, const struct fbr_pkt *p,
					       const struct fbr_dev *port)
{
	if (!p || !port)
		return FBR_FOREIGN;

	struct fbr_flow_key k, rev;
	struct fbr_flow *own, *to;
	struct fbr_pkt in;

	if (fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), &in) || in.kind != FBR_L4_PORTS ||
	    in.saddr != p->daddr || in.daddr != port->ip)
		return FBR_FOREIGN;
	fbr_answer_key(&k, &in);
	own = fbr_flow_get(&k);
	if (!own || own->kind != FBR_OUT || own->pif != port->ifindex || own->addr != p->daddr)
		return FBR_FOREIGN;
	fbr_hair_key(&rev, p->daddr, own->port, k.dport, k.proto);
	to = fbr_inbound_live(&rev);
	if (!to)
		return FBR_FOREIGN;
	if (!fbr_icmp_sound(skb, p, &in))
		return FBR_BAD_CSUM;
	fbr_hair_tag(skb, own->sess);
	/* Point of no return. */
	if (fbr_rewrite_quote(skb, p->l4, true, to->addr, to->port) ||
	    fbr_rewrite_outer(skb, p->l3, false, p->daddr, to->addr))
		return FBR_UNSUPPORTED;
	return FBR_NONE;
}

/* The publication or the mapping that a packet to an address of the host's may
 * be for; false if none: it is the host's. pub stays NULL for a mapping, which is
 * meant at its own external address only.
 */
static __always_inline bool fbr_hair_target(const struct fbr_pkt *p, struct fbr_pub **pub)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_nport *np;

	*pub = c && c->published ? fbr_pub_get(p->daddr, p->dport, p->proto) : NULL;
	if (*pub)
		return fbr_pub_allows(*pub, p->saddr);
	np = fbr_nport_at(p->proto, p->dport);
	return np && np->refs && np->pif && np->ext == p->daddr;
}

/* Whether port may be of a mapping that is still to be brought over. */
static __always_inline bool fbr_hair_may_be_carried(__be16 port)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && fbr_held() && fbr_in_range(c, port);
}

/* A container's packet for the host that is no hit. Returns FBR_FOREIGN if it is
 * the host's, untouched; FBR_NONE if its destination is a container's now; else
 * the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_hairpin(struct __sk_buff *skb, const struct fbr_dev *port)
{
	if (!port)
		return FBR_FOREIGN;

	struct fbr_pub *pub = NULL;
	struct fbr_flow_key k, in;
	struct fbr_flow *f, *to;
	enum fbr_reason why;
	struct fbr_pkt p;
	__u32 slot, *hint;

	if (fbr_parse(skb, &p))
		return FBR_FOREIGN;
	if (p.frag & FBR_FRAG_LATER)
		return fbr_frag_later(skb, &p, true);
	if (p.kind == FBR_L4_ICMP_ERR)
		return p.frag ? FBR_FOREIGN : fbr_hairpin_error(skb, &p, port);
	if (p.kind != FBR_L4_PORTS ||
	    (!fbr_hair_target(&p, &pub) && (pub || !fbr_hair_may_be_carried(p.dport))) ||
	    !fbr_is_host(skb, port, p.daddr))
		return FBR_FOREIGN;

	fbr_key(&k, &p);
	if (!pub && fbr_host_receives(skb, &k))
		return FBR_FOREIGN;

	/* Out: the sender's session. */
	f = fbr_flow_live(skb, NULL, &k, port->ifindex, p.daddr);
	if (!f) {
		if (fbr_held())
			return FBR_UNSUPPORTED;
		if (!fbr_first_packet(&p) || (pub && fbr_udp_awaited(skb, &k)))
			return FBR_FOREIGN;
		why = fbr_out_create(skb, &k, p.daddr, port->ifindex);
		f = fbr_flow_get(&k);
		if (!f)
			return why ? why : FBR_NAT_FULL;
	}
	fbr_out_seen(skb, f, &p, true);
	slot = f->sess;

	/* And in: the receiver's. */
	fbr_hair_key(&in, p.daddr, f->port, p.dport, p.proto);
	to = fbr_inbound_live(&in);
	if (!to) {
		why = fbr_admit_by(skb, &p, NULL, &in, pub, port->ifindex);
		if (why && why != FBR_FOREIGN)
			return why;
		to = fbr_inbound_live(&in);
	}
	/* To a mapping that has not asked for it: the host's, which may have a rule that
	 * leads it elsewhere, and whose refusal fbr_hairpin_refused() keeps back.
	 */
	if (!to && fbr_held())
		return FBR_UNSUPPORTED;
	if (!to)
		return pub ? FBR_FILTERED : FBR_FOREIGN;
	fbr_sess_track(skb, to->sess, &p, false);
	if (!(p.tcp_flags & TCP_RST))
		to->seen = fbr_now();
	hint = fbr_hair_hint(&p, to->addr, to->port);
	if (hint)
		*hint = slot;
	fbr_hair_tag(skb, slot);
	/* Point of no return. */
	if (fbr_rewrite(skb, p.l3, false, to->addr, to->port))
		return FBR_UNSUPPORTED;
	return p.frag ? fbr_frag_first(skb, &p, port, true) : FBR_NONE;
}

/* What the kernel delivers to a port from a bridge. Returns FBR_FOREIGN if it is
 * no hairpinned packet, untouched; FBR_NONE if its source is now the host's
 * address and the sender's external port; else the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_hairpin_deliver(struct __sk_buff *skb)
{
	struct fbr_session *s;
	struct fbr_pkt p;

	if (fbr_parse(skb, &p))
		return FBR_FOREIGN;
	s = fbr_hair_session(skb->hash, p.saddr);
	if (!s)
		return FBR_FOREIGN;
	if (p.frag & FBR_FRAG_LATER) {
		if (p.proto != s->fwd.proto)
			return FBR_FOREIGN;
		/* Point of no return. */
		return fbr_rewrite_outer(skb, p.l3, true, p.saddr, s->ext) ? FBR_UNSUPPORTED
									   : FBR_NONE;
	}
	if (p.kind == FBR_L4_ICMP_ERR)
		/* Point of no return. */
		return fbr_rewrite_quote(skb, p.l4, false, s->ext, s->eport) ||
				       fbr_rewrite_outer(skb, p.l3, true, p.saddr, s->ext)
			       ? FBR_UNSUPPORTED
			       : FBR_NONE;
	if (p.kind != FBR_L4_PORTS || p.proto != s->fwd.proto || p.sport != s->fwd.sport)
		return FBR_FOREIGN;

	struct fbr_flow_key inside;

	fbr_key(&inside, &p);
	fbr_ct_extend(skb, &inside, fbr_timeout(p.proto, s->fwd.dport, s->bits));
	/* Point of no return. */
	return fbr_rewrite(skb, p.l3, true, s->ext, s->eport) ? FBR_UNSUPPORTED : FBR_NONE;
}

/* The packet that another, p, of the host itself is about: an ICMP error quotes
 * it, a RST answers it. False if p is neither.
 */
static __always_inline bool fbr_hair_subject(struct __sk_buff *skb, const struct fbr_pkt *p,
					     struct fbr_pkt *in)
{
	if (p->frag)
		return false;
	if (p->kind == FBR_L4_ICMP_ERR)
		return !fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), in) &&
		       in->kind == FBR_L4_PORTS && in->saddr == p->daddr;
	if (p->kind != FBR_L4_PORTS || !(p->tcp_flags & TCP_RST))
		return false;
	*in = (struct fbr_pkt){
		.saddr = p->daddr,
		.daddr = p->saddr,
		.sport = p->dport,
		.dport = p->sport,
		.proto = p->proto,
	};
	return true;
}

/* Whether p is the stack's own refusal of a packet, in, for another container's
 * mapping, which may yet ask for it: as silent as at an uplink (refusal.h).
 */
static __always_inline bool fbr_hairpin_refused(struct __sk_buff *skb, const struct fbr_pkt *p,
						const struct fbr_pkt *in)
{
	struct fbr_nport *np = fbr_nport_at(in->proto, in->dport);
	struct fbr_flow_key k;
	struct fbr_flow *f;

	if (!np)
		return false;
	if (p->kind == FBR_L4_ICMP_ERR
		    ? p->icmp_type != ICMP_DEST_UNREACH || p->icmp_code != ICMP_PORT_UNREACH
		    : !fbr_answer_rst(skb, p))
		return false;
	fbr_key(&k, in);
	if (!fbr_passed_take(&k) || !np->refs || !np->pif || np->ext != in->daddr)
		return false;
	f = fbr_flow_get(&k);
	return f && f->kind == FBR_OUT && f->addr == in->daddr && !fbr_port_known(skb, &k);
}

/* What the host itself sends about a hairpinned packet to its sender p->daddr, an
 * ICMP error or a firewall's RST: makes it about the packet that the sender knows.
 * Returns as fbr_hairpin_deliver.
 */
__fbr_global enum fbr_reason fbr_hairpin_from_host(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	if (!p)
		return FBR_FOREIGN;

	struct fbr_session *s;
	struct fbr_flow_key k;
	struct fbr_flow *to;
	struct fbr_pkt in;
	__u32 *hint;

	if (!fbr_hair_subject(skb, p, &in))
		return FBR_FOREIGN;
	if (fbr_hairpin_refused(skb, p, &in))
		return FBR_FILTERED;
	hint = fbr_hair_hint(&in, in.daddr, in.dport);
	s = hint ? fbr_hair_sender(*hint, in.saddr) : NULL;
	if (!s || s->fwd.sport != in.sport || s->fwd.proto != in.proto)
		return FBR_FOREIGN;
	fbr_hair_key(&k, s->ext, s->eport, s->fwd.dport, in.proto);
	to = fbr_inbound_live(&k);
	if (!to || to->addr != in.daddr || to->port != in.dport)
		return FBR_FOREIGN;
	/* Point of no return. */
	if (p->kind == FBR_L4_ICMP_ERR)
		return fbr_rewrite_quote(skb, p->l4, false, s->ext, s->fwd.dport) ? FBR_UNSUPPORTED
										  : FBR_NONE;
	return fbr_rewrite(skb, p->l3, true, s->ext, s->fwd.dport) ? FBR_UNSUPPORTED : FBR_NONE;
}

#endif
