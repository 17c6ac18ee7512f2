/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What may pass an uplink, in either direction. */
#ifndef FBR_UPLINK_H
#define FBR_UPLINK_H

#include "allowed.h"
#include "csum.h"
#include "device.h"
#include "frag.h"
#include "hop.h"
#include "host.h"
#include "icmp.h"
#include "instance.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "out.h"
#include "parse.h"
#include "plain.h"
#include "qdisc.h"
#include "reason.h"
#include "refusal.h"
#include "scratch.h"
#include "way.h"

/* Whether a packet from outside has addresses that cannot come from there (RFC 1812 section
 * 5.3.7). Here and below, ctx is the context of a tc or an XDP program.
 */
static __always_inline bool fbr_martian(void *ctx, const struct fbr_dev *u, fbr_addr saddr,
					fbr_addr daddr)
{
	bool unspecified = fbr_addr_zero(saddr); /* DHCP and IGMP, to all */

	if (fbr_addr_eq(saddr, daddr) || fbr_multicast(saddr) || fbr_broadcast(saddr) ||
	    fbr_loopback_or_zero(daddr) ||
	    (fbr_loopback_or_zero(saddr) &&
	     !(unspecified && (fbr_multicast(daddr) || fbr_broadcast(daddr)))))
		return true;
	return fbr_net_get(saddr) && !fbr_beyond(ctx, u, saddr);
}

/* Judges a packet from outside that belongs to no flow: drops martians, and packets to the
 * own address of a container that the remote may not reach by it. Everything else is the
 * host's. Returns FBR_NONE or the reason to drop it.
 */
static __always_inline enum fbr_reason fbr_judge(void *ctx, const struct fbr_dev *u, fbr_addr saddr,
						 fbr_addr daddr, fbr_addr remote)
{
	struct fbr_net *n;

	if (fbr_martian(ctx, u, saddr, daddr))
		return FBR_MARTIAN;
	if (fbr_addr_eq(daddr, fbr_dev_ip(u)))
		return FBR_NONE;
	n = fbr_net_get(daddr);
	if (!n || fbr_plain_to(n, FBR_ARG(remote)) || fbr_owns(ctx, u->ifindex, daddr))
		return FBR_NONE;
	return FBR_DIRECT;
}

__fbr_global enum fbr_reason fbr_from_outside(struct __sk_buff *skb, const struct fbr_dev *u,
					      const struct fbr_pkt *p)
{
	enum fbr_reason why;
	struct fbr_net *n;

	if (!u || !p)
		return FBR_MARTIAN;
	if (fbr_link_affair(p) && !fbr_net_get(p->daddr))
		return FBR_NONE;
	why = fbr_judge(skb, u, p->saddr, p->daddr, fbr_remote(skb, p));
	n = why == FBR_DIRECT ? fbr_net_get(p->daddr) : NULL;
	if (!n || !(n->flags & FBR_NET_OWN))
		return why;
	/* What has no session here may be an answer: fbr_own_admits() decides. */
	return p->frag || p->kind != FBR_L4_PORTS ? FBR_NONE : FBR_FILTERED;
}

/* Whether a checksum is to be filled in where it would overwrite more than the packet's
 * payload, after all checks.
 */
static __always_inline bool fbr_sum_aimed(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	enum fbr_pending sum = fbr_sum_pending(skb, p->l4, p->proto);

	return p->frag ? sum != FBR_SUM_DONE : sum == FBR_SUM_BAD;
}

/* Handles a packet that leaves by an uplink and is not to be translated. It leaves
 * unchanged, unless it belongs to a session: the answer of a published port, or of a mapping
 * that anybody may send to. The client has used an address of the host. Returns
 * FBR_NOT_OURS if nothing about it is to be translated.
 */
static __always_inline enum fbr_reason fbr_routed_out(struct __sk_buff *skb,
						      const struct fbr_pkt *p,
						      const struct fbr_dev *u,
						      const struct fbr_net *n, struct fbr_dev *port)
{
	struct fbr_conf *c = fbr_conf_get();
	enum fbr_reason why;

	/* Without publications, only a network that is translated as a rule has sessions. */
	if (!c || !port || (!c->published && !(n->flags & FBR_NET_MASQUERADE)))
		return FBR_NOT_OURS;
	if (p->kind == FBR_L4_ICMP_ERR)
		return fbr_icmp_error_out(skb, p);
	if (p->frag & FBR_FRAG_LATER) {
		why = fbr_frag_later(skb, p, false);
		return why == FBR_FRAGMENT ? FBR_NONE : why;
	}
	if (p->kind != FBR_L4_PORTS)
		return FBR_NOT_OURS;
	why = fbr_snat(skb, p, u, port, FBR_SNAT_ROUTED);
	return why || !p->frag ? why : fbr_frag_first(skb, p, port, false);
}

/* Whether a packet needs no session where nothing is translated: it has no port that
 * somebody would have to open.
 */
static __always_inline bool fbr_no_session(const struct fbr_pkt *p)
{
	return p->kind == FBR_L4_NONE || p->kind == FBR_L4_ECHO_REP;
}

/* Handles a packet that leaves by an uplink with a container's source. */
static __always_inline enum fbr_reason
fbr_container_out(struct __sk_buff *skb, const struct fbr_pkt *p, const struct fbr_dev *u,
		  const struct fbr_net *n, struct fbr_dev **blame)
{
	__u32 iif = skb->ingress_ifindex;
	bool own = n->flags & FBR_NET_OWN;
	enum fbr_reason why;

	if (n->flags & FBR_NET_INTERNAL)
		return FBR_ISOLATED;
	if (iif && iif != n->bridge)
		return FBR_SPOOF_IP; /* from another bridge or device: not our container's */
	if (fbr_sum_aimed(skb, p))
		return FBR_BAD_CSUM;
	*blame = fbr_addr_port(FBR_ARG(p->saddr));
	if (!fbr_net_leads(n, u->ifindex))
		return FBR_NO_UPLINK;
	if (fbr_plain_to(n, FBR_ARG(p->daddr))) {
		why = fbr_routed_out(skb, p, u, n, *blame);
		if (why != FBR_NOT_OURS)
			return why;
		if (iif && *blame && !((*blame)->flags & FBR_DEV_KERNEL_ROUTED) &&
		    !fbr_device_sorts(skb)) {
			if (!p->l3 || fbr_hop_known(skb, u->ifindex, FBR_ARG(p->daddr)))
				fbr_way_passed(skb, p, FBR_WAY_OUT, (*blame)->ifindex,
					       fbr_exit_mtu(skb, u, n, FBR_ARG(p->daddr)));
		}
		return FBR_NONE;
	}
	if (!*blame)
		return own ? FBR_NONE : FBR_SPOOF_IP;
	if (p->kind == FBR_L4_ICMP_ERR)
		return fbr_icmp_error_out(skb, p);
	if (p->frag & FBR_FRAG_LATER) {
		why = fbr_frag_later(skb, p, false);
		return own && why == FBR_FRAGMENT ? FBR_NONE : why;
	}
	if (own && fbr_no_session(p))
		return FBR_NONE;
	why = fbr_snat(skb, p, u, *blame, iif ? FBR_SNAT_FORWARDED : FBR_SNAT_HOST);
	return why || !p->frag ? why : fbr_frag_first(skb, p, *blame, false);
}

/* Handles a packet of the host itself or of a neighbour NAT. What the host forwards with
 * another's address, such as a client's of a container of Docker's, has no port of ours.
 */
static __always_inline enum fbr_reason fbr_host_out(struct __sk_buff *skb, const struct fbr_pkt *p,
						    const struct fbr_dev *u)
{
	FBR_SCRATCH(fbr_flow_key, key);
	struct fbr_nport *np;

	if (!key)
		return FBR_UNSUPPORTED;
	if (p->kind == FBR_L4_ICMP_ERR)
		return fbr_icmp_error_out(skb, p);
	/* For a fragmented datagram the first fragment decides: only its port changes. */
	if ((p->kind != FBR_L4_PORTS && p->kind != FBR_L4_ECHO_REQ) || fbr_link_affair(p))
		return FBR_NONE;
	np = fbr_nport_at(p->proto, p->sport);
	if (!np || (skb->ingress_ifindex &&
		    !fbr_is_local(skb, u, FBR_ASK(u->ifindex, fbr_port_bridge(np->pif)),
				  FBR_ARG(p->saddr))))
		return FBR_NONE;
	fbr_answer_key(key, p);
	if (fbr_answer_rst(skb, p) && fbr_passed_take(key) && !fbr_port_known(skb, key))
		return FBR_FOREIGN;
	return fbr_snat_host(skb, p);
}

#endif
