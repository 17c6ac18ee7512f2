/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Hairpinning: a container reaches a container by an address of the host and an external or
 * published port (RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7). The other container may
 * be in another network, or be the sender itself.
 *
 * There are two sessions, as if the packet had left and come back. The sender's session
 * owns an external port, and its remote is the host's address. The receiver's session has
 * that port as its remote. The filter or the publication decides whether the receiver's
 * session may exist, as for anybody outside.
 *
 * fbr_port_in translates the destination and fbr_port_out the source. In between, the
 * kernel routes and filters a packet with both containers' own addresses: a source address
 * of the host would be a martian on the bridge. Such packets always take the kernel's path.
 *
 * fbr_port_out and fbr_guard recognise these packets by skb->hash, which holds random bits
 * of the instance and the sender's slot. Nothing on the way changes the hash, and no rule
 * can match it. The session found is compared with the packet: a container that guesses a
 * hash only translates its own packet into its own external port. An error or RST that the
 * host itself sends about such a packet has no such hash. For these, fbr_hair leads to the
 * sender's session.
 */
#ifndef FBR_HAIRPIN_H
#define FBR_HAIRPIN_H

#include "allowed.h"
#include "claim.h"
#include "clock.h"
#include "device.h"
#include "extport.h"
#include "flow.h"
#include "frag.h"
#include "hair.h"
#include "icmp.h"
#include "in.h"
#include "instance.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "out.h"
#include "parse.h"
#include "publish.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "socket.h"
#include "track.h"

/* Whether a container's packet to addr would end at the host. This is also true for an
 * address without a route: nobody else can be meant.
 */
__fbr_global bool fbr_is_host(struct __sk_buff *skb, const struct fbr_dev *p, fbr_addr_arg arg)
{
	if (!p || !FBR_GIVEN(arg))
		return false;

	fbr_addr addr = FBR_ADDR(arg);
	struct fbr_dev *br = fbr_dev_get(p->bridge);
	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);

	if (!fib || fbr_loopback_or_zero(addr) || fbr_multicast(addr) || fbr_broadcast(addr))
		return false;
	if (br && fbr_addr_eq(fbr_dev_ip(br), addr))
		return true;
	fbr_fib_to(fib, p->bridge, addr);
	fbr_fib_src(fib) = fbr_dev_ip(p);
	return bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH) ==
		       BPF_FIB_LKUP_RET_NOT_FWDED &&
	       !fbr_net_broadcast(addr);
}

/* Translates a container's ICMP error about a hairpinned packet that it received: the
 * destination, and the address in the quote, become the packet's sender. Returns as
 * fbr_hairpin().
 */
__fbr_global enum fbr_reason fbr_hairpin_error(struct __sk_buff *skb, const struct fbr_pkt *p,
					       const struct fbr_dev *port)
{
	if (!p || !port)
		return FBR_NOT_OURS;

	struct fbr_flow_key rev;
	struct fbr_flow *own, *to;
	FBR_SCRATCH(fbr_flow_key, key);
	FBR_SCRATCH(fbr_pkt, quoted);

	if (!key || !quoted || fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), quoted) ||
	    quoted->kind != FBR_L4_PORTS || !fbr_addr_eq(quoted->saddr, p->daddr) ||
	    !fbr_port_has(port, FBR_ARG(quoted->daddr)))
		return FBR_NOT_OURS;
	fbr_answer_key(key, quoted);
	own = fbr_flow_get(key);
	if (!own || own->kind != FBR_OUT || own->iif != port->ifindex ||
	    !fbr_addr_eq(own->addr, p->daddr))
		return FBR_NOT_OURS;
	fbr_hair_key(&rev, p->daddr, own->port, key->dport, key->proto);
	to = fbr_inbound_live(&rev);
	if (!to)
		return FBR_NOT_OURS;
	if (!fbr_icmp_sound(skb, p, quoted))
		return FBR_BAD_CSUM;
	fbr_hair_tag(skb, own->sess);
	/* Point of no return. */
	if (fbr_rewrite_quote(skb, p->l4, true, FBR_ARG(to->addr), to->port) ||
	    fbr_rewrite_outer(skb, p->l3, p->l4, false, p->daddr, to->addr))
		return FBR_UNSUPPORTED;
	return FBR_NONE;
}

/* Whether a packet to an address of the host may be for a publication (pub) or a mapping.
 * pub stays NULL for a mapping, which is reached at its own external address only.
 */
static __always_inline bool fbr_hair_target(const struct fbr_pkt *p, struct fbr_pub **pub)
{
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_nport *np;

	*pub = c && c->published ? fbr_pub_get(p->daddr, p->dport, p->proto) : NULL;
	if (*pub)
		return fbr_pub_allows(*pub, p->saddr);
	np = fbr_nport_at(p->proto, p->dport);
	return np && np->refs && np->pif && fbr_addr_eq(np->ext, p->daddr);
}

/* Whether port may belong to a mapping that is still to be brought over. */
static __always_inline bool fbr_hair_may_be_carried(__be16 port)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && fbr_held() && fbr_in_range(c, port);
}

/* Translates a container's packet p to the host. Returns as fbr_hairpin(). */
__fbr_global6 enum fbr_reason fbr_hairpin_flow(struct __sk_buff *skb, const struct fbr_dev *port,
					       const struct fbr_pkt *p)
{
	FBR_SCRATCH(fbr_flow_key, key);
	FBR_SCRATCH(fbr_flow_key, in);
	struct fbr_pub *pub = NULL;
	struct fbr_flow *f, *to;
	enum fbr_reason why;
	__u32 slot, *hint;

	if (!port || !p || !key || !in)
		return FBR_NOT_OURS;
	if (p->kind != FBR_L4_PORTS ||
	    (!fbr_hair_target(p, &pub) && (pub || !fbr_hair_may_be_carried(p->dport))) ||
	    !fbr_is_host(skb, port, FBR_ARG(p->daddr)))
		return FBR_NOT_OURS;

	fbr_key(key, p);
	if (!pub && fbr_host_receives(skb, key))
		return FBR_NOT_OURS;

	/* The sender's session, outbound. */
	f = fbr_flow_live(skb, NULL, key, port->ifindex, FBR_ARG(p->daddr));
	if (!f) {
		if (fbr_held())
			return FBR_UNSUPPORTED;
		if (!fbr_first_packet(p) || (pub && fbr_udp_awaited(skb, key)))
			return FBR_NOT_OURS;
		why = fbr_out_create(skb, key, FBR_ARG(p->daddr), port->ifindex, 0);
		f = fbr_flow_get(key);
		if (!f)
			return why ? why : FBR_NAT_FULL;
	}
	fbr_out_seen(skb, f, p, true);
	slot = f->sess;

	/* The receiver's session, inbound. */
	fbr_hair_key(in, p->daddr, f->port, p->dport, p->proto);
	to = fbr_inbound_live(in);
	if (!to) {
		why = fbr_admit_by(skb, p, NULL, in, pub, port->ifindex);
		if (why && why != FBR_NOT_OURS)
			return why;
		to = fbr_inbound_live(in);
	}
	/* The mapping has not asked for this packet, so it is the host's. A rule of the
	 * host may direct it elsewhere. fbr_hairpin_refused() suppresses the host's
	 * refusal.
	 */
	if (!to && fbr_held())
		return FBR_UNSUPPORTED;
	if (!to)
		return pub ? FBR_FILTERED : FBR_NOT_OURS;
	fbr_sess_track(skb, to->sess, p, false);
	if (!(p->tcp_flags & TCP_RST))
		to->seen = fbr_now();
	hint = fbr_hair_hint(p, to->addr, to->port);
	if (hint)
		*hint = slot;
	fbr_hair_tag(skb, slot);
	/* Point of no return. */
	if (fbr_rewrite(skb, p->l3, false, FBR_ARG(to->addr), to->port))
		return FBR_UNSUPPORTED;
	return p->frag ? fbr_frag_first(skb, p, port, true) : FBR_NONE;
}

/* Translates a container's packet to the host that is no hit. Returns FBR_NOT_OURS if it is
 * the host's, untouched; FBR_NONE if its destination is now a container; otherwise the
 * reason to drop it.
 */
__fbr_global4 enum fbr_reason fbr_hairpin(struct __sk_buff *skb, const struct fbr_dev *port)
{
	FBR_SCRATCH(fbr_pkt, pkt);

	if (!port || !pkt || fbr_parse(skb, pkt))
		return FBR_NOT_OURS;
	if (pkt->frag & FBR_FRAG_LATER)
		return fbr_frag_later(skb, pkt, true);
	if (pkt->kind == FBR_L4_ICMP_ERR)
		return pkt->frag ? FBR_NOT_OURS : fbr_hairpin_error(skb, pkt, port);
	return fbr_hairpin_flow(skb, port, pkt);
}

#endif
