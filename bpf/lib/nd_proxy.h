/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Neighbour discovery at an uplink for containers' addresses (networks with FBR_NET_ND_PROXY):
 * their addresses are out of the uplink's own prefix, so the outside looks for them on the
 * link. The kernel's proxy would answer late, and needs a switch on the device.
 */
#ifndef FBR_ND_PROXY_H
#define FBR_ND_PROXY_H

#include "allowed.h"
#include "device.h"
#include "kctx.h"
#include "nd.h"
#include "parse.h"

/* Answers a solicitation p from outside for a container's address, with the uplink's MAC
 * address. A stranger's probe for it is answered, too, so the stranger gives it up. Returns as
 * fbr_nd_write(); the answer is to be sent back by the uplink.
 */
__fbr_global int fbr_nd_proxy(struct __sk_buff *skb, const struct fbr_dev *u,
			      const struct fbr_pkt *p)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct fbr_nd_reply r = {};
	struct net_device *dev = k->dev;
	struct fbr_net *n;
	__u8 hops;

	if (!u || (u->flags & FBR_DEV_SIDE) || !p || !dev || p->proto != IPPROTO_ICMPV6 ||
	    p->icmp_type != ICMPV6_NS || p->frag)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l3 + offsetof(fbr_ip, ttl), &hops, sizeof(hops)) ||
	    hops != 255 ||
	    bpf_skb_load_bytes(skb, p->l4 + offsetof(struct fbr_nd, target), &r.target,
			       sizeof(r.target)))
		return 0;
	n = fbr_net_get(r.target);
	if (!n || !(n->flags & FBR_NET_ND_PROXY) || !fbr_net_leads(n, u->ifindex) ||
	    fbr_net_get(p->saddr) || !fbr_addr_port(FBR_ARG(r.target)))
		return 0;
	r.saddr = r.target;
	r.to = p->saddr;
	if (bpf_probe_read_kernel(r.mac, ETH_ALEN, dev->dev_addr))
		return 0;
	return fbr_nd_write(skb, &r);
}

#endif
