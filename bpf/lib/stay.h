/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How long an external address stays. With IPv4 the kernel has one choice for each uplink, and
 * what has another address than that is over. With IPv6 it may choose another address for
 * each destination (RFC 6724 section 5), and another temporary one every day (RFC 8981). So a
 * mapping or a flow keeps its address while that is the host's and its packets leave by the
 * same uplink, unless the network says which address it is.
 */
#ifndef FBR_STAY_H
#define FBR_STAY_H

#include "device.h"
#include "extport.h"
#include "local.h"
#include "nat.h"

#if FBR_AF == 4
#define fbr_new_leaves(n, by)      ((void)(by))
#define fbr_new_uplink(n)          0
#define fbr_bind_is(np, u, ext)    false
#define fbr_bind_leads(np, by)     ((void)0)
#define fbr_bind_stays(skb, n, np) false
#define fbr_bind_used(np, n)       ((np)->ext = (n)->ext)
#define fbr_flow_stays(skb, f, u, clients) \
	((clients) && fbr_delivers(skb, (u)->ifindex, FBR_ARG((f)->addr)))
#else
/* Records the uplink (ifindex) that a new session's packets leave by. */
#define fbr_new_leaves(n, by)  ((n)->uplink = (by))
#define fbr_new_uplink(n)      ((n)->uplink)

/* Records the uplink (ifindex) that a mapping's packets leave by. */
#define fbr_bind_leads(np, by) ((np)->uplink = (by))

/* Records the address of a mapping's session n. One begun outside says nothing about what the
 * mapping sends.
 */
static __always_inline void fbr_bind_used(struct fbr_nport *np, const struct fbr_new *n)
{
	if (n->inbound)
		return;
	np->ext = n->ext;
	np->uplink = n->uplink;
}

/* Whether what a mapping sends by uplink u leaves from the address ext. */
static __always_inline bool fbr_bind_is(const struct fbr_nport *np, const struct fbr_dev *u,
					fbr_addr ext)
{
	return u && np->uplink == u->ifindex && fbr_addr_eq(np->ext, ext);
}

/* Whether n, of the mapping np, leaves from the mapping's address. */
__fbr_global bool fbr_bind_stays(struct __sk_buff *skb, const struct fbr_new *n,
				 const struct fbr_nport *np)
{
	struct fbr_dev *port = n ? fbr_dev_get(n->pif) : NULL;
	fbr_addr ext;

	if (!np || !port || (n->net & (FBR_NET_SNAT | FBR_NET_OWN)) || !n->uplink ||
	    np->uplink != n->uplink)
		return false;
	ext = np->ext;
	return fbr_delivers(skb, port->bridge, &ext);
}

/* Whether the outbound flow f lives on at uplink u, though the kernel would choose another
 * address. clients: they may have used any address of the host.
 */
__fbr_global bool fbr_flow_stays(struct __sk_buff *skb, const struct fbr_flow *f,
				 const struct fbr_dev *u, bool clients)
{
	struct fbr_dev *port = f ? fbr_dev_get(f->iif) : NULL;
	fbr_addr ext;

	if (!u || !port ||
	    (!clients && ((port->flags & FBR_DEV_SOURCE) || (f->oif && f->oif != u->ifindex))))
		return false;
	ext = f->addr;
	return fbr_delivers(skb, port->bridge, &ext);
}
#endif

#endif
