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
#include "flow.h"
#include "local.h"
#include "nat.h"
#include "nport.h"

#if FBR_AF == 4
#define fbr_new_leaves(n, by)      ((void)(by))
#define fbr_new_uplink(n)          0
#define fbr_bind_is(np, u, ext)    false
#define fbr_bind_leads(np, by)     ((void)0)
#define fbr_bind_stays(skb, n, np) false
#define fbr_bind_used(np, n)       ((np)->ext = (n)->ext)
#define fbr_slot_leads(slot)       0
#define fbr_bind_carried(s, slot)  ((void)0)
#define fbr_flow_stays(skb, f, u, new, clients) \
	((clients) && fbr_delivers(skb, (u)->ifindex, FBR_ARG((f)->addr)))
#else
/* Records the uplink (ifindex) that a new session's packets leave by. */
#define fbr_new_leaves(n, by)  ((n)->uplink = (by))
#define fbr_new_uplink(n)      ((n)->uplink)

/* Records the uplink (ifindex) that a mapping's packets leave by. */
#define fbr_bind_leads(np, by) ((np)->uplink = (by))

/* The device (ifindex) that what the session in slot sends leaves by; 0: it has sent nothing. */
static __always_inline __u32 fbr_slot_leads(__u32 slot)
{
	struct fbr_flow *f = fbr_flow_out(slot);

	return f ? f->oif : 0;
}

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

/* The same for the session s, brought over to slot. */
static __always_inline void fbr_bind_carried(const struct fbr_session *s, __u32 slot)
{
	struct fbr_nport *np = fbr_nport_at(s->fwd.proto, s->eport);

	if (!np || ((s->bits & FBR_S_INBOUND) && np->refs > 1))
		return;
	np->ext = s->ext;
	np->uplink = fbr_slot_leads(slot);
}

/* Whether what a mapping sends by uplink u leaves from the address ext. */
static __always_inline bool fbr_bind_is(const struct fbr_nport *np, const struct fbr_dev *u,
					fbr_addr ext)
{
	return u && np->uplink == u->ifindex && fbr_addr_eq(np->ext, ext);
}

/* Whether whoever reaches one of two addresses of the host reaches the other. What answers a
 * global address has no way to a unique local one (fc00::/7), which the kernel chooses only
 * where there is nothing better (RFC 6724 section 2.1).
 */
static __always_inline bool fbr_label_same(fbr_addr a, fbr_addr b)
{
	const __be32 mask = bpf_htonl(0xfe000000), local = bpf_htonl(0xfc000000);

	return ((a.word[0] & mask) == local) == ((b.word[0] & mask) == local);
}

/* Whether the mapping np keeps its address as its session n begins. If so, and if that is of
 * use to n, n leaves from it, too.
 */
__fbr_global bool fbr_bind_stays(struct __sk_buff *skb, struct fbr_new *n,
				 const struct fbr_nport *np)
{
	struct fbr_dev *port = n ? fbr_dev_get(n->pif) : NULL;
	fbr_addr ext;

	if (!np || !port || n->inbound || (n->net & (FBR_NET_SNAT | FBR_NET_OWN)) || !n->uplink ||
	    np->uplink != n->uplink)
		return false;
	ext = np->ext;
	if (!fbr_delivers(skb, port->bridge, &ext))
		return false;
	if (fbr_label_same(ext, n->ext))
		n->ext = ext;
	return true;
}

/* Whether the outbound flow f lives on at uplink u, though the kernel would choose the address
 * new. clients: they may have used any address of the host.
 */
__fbr_global bool fbr_flow_stays(struct __sk_buff *skb, const struct fbr_flow *f,
				 const struct fbr_dev *u, const fbr_addr *new, bool clients)
{
	struct fbr_dev *port = f ? fbr_dev_get(f->iif) : NULL;
	struct fbr_net *net = f ? fbr_net_get(f->key.saddr) : NULL;
	fbr_addr ext;

	if (!u || !new || !port || !net)
		return false;
	ext = f->addr;
	if (!clients && ((net->flags & (FBR_NET_SNAT | FBR_NET_OWN)) ||
			 (f->oif && f->oif != u->ifindex) || !fbr_label_same(ext, *new)))
		return false;
	return fbr_delivers(skb, port->bridge, &ext);
}
#endif

#endif
