/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which addresses are the host's own. The kernel's routes decide that: they change while
 * the programs run, and the maps may not know yet. Only for cold paths. Addresses are in
 * network byte order. ctx is the context of a tc or an XDP program.
 */
#ifndef FBR_LOCAL_H
#define FBR_LOCAL_H

#include "config.h"
#include "device.h"
#include "nat.h"
#include "scratch.h"

/* Whether an IPv6 address is one beyond a link. */
static __always_inline bool fbr_routable(fbr_addr a)
{
	return !fbr_link_local(a) && !fbr_multicast(a) && !fbr_loopback_or_zero(a);
}

/* The result of bpf_fib_lookup() for a packet to addr that comes in by a device.
 * BPF_FIB_LKUP_RET_NOT_FWDED: the kernel delivers it to itself, on whatever device. With IPv6
 * the helper also says so of what never leaves a link, and of what it has no route to. So an
 * address counts as the host's only if the main table would lead to it, by its prefix or by a
 * default route.
 * BPF_FIB_LKUP_RET_FWD_DISABLED: no answer, since the device's "forwarding" is 0.
 * Broadcasts are also NOT_FWDED; fbr_net_broadcast() tells them from the host's addresses.
 */
static __always_inline int fbr_fib_ask(void *ctx, __u32 ifindex, fbr_addr addr)
{
	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);
	int verdict;

	if (!fib)
		return BPF_FIB_LKUP_RET_FWD_DISABLED;
	fbr_fib_to(fib, ifindex, addr);
	verdict = bpf_fib_lookup(ctx, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
	if (FBR_AF == 6 && verdict == BPF_FIB_LKUP_RET_NOT_FWDED &&
	    (!fbr_routable(addr) ||
	     bpf_fib_lookup(ctx, fib, sizeof(*fib),
			    BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_DIRECT) == verdict))
		return BPF_FIB_LKUP_RET_UNREACHABLE;
	return verdict;
}

__fbr_global int fbr_fib_verdict(struct __sk_buff *skb, __u32 ifindex, fbr_addr_arg addr)
{
	return FBR_GIVEN(addr) ? fbr_fib_ask(skb, ifindex, FBR_ADDR(addr)) : 0;
}

/* Whether an address is a network's broadcast address. Such an address is no sender, and
 * belongs to nobody.
 */
static __always_inline bool fbr_net_broadcast(fbr_addr addr)
{
	struct fbr_net *n = fbr_net_get(addr);

	return n && fbr_addr_eq(n->broadcast, addr);
}

/* Whether an address is the host's: the kernel delivers packets to it to itself. ifindex is
 * FBR_ASK's.
 */
__fbr_global bool fbr_delivers(struct __sk_buff *skb, __u32 ifindex, fbr_addr_arg arg)
{
	if (!FBR_GIVEN(arg))
		return false;

	fbr_addr addr = FBR_ADDR(arg);

	return fbr_fib_ask(skb, ifindex, addr) == BPF_FIB_LKUP_RET_NOT_FWDED &&
	       !fbr_net_broadcast(addr);
}

/* The same, without a lookup for the uplink's known address. */
static __always_inline bool fbr_is_local(struct __sk_buff *skb, const struct fbr_dev *u,
					 __u32 ifindex, fbr_addr_arg addr)
{
	return u &&
	       (fbr_addr_eq(FBR_ADDR(addr), fbr_dev_ip(u)) || fbr_delivers(skb, ifindex, addr));
}

/* The network in whose subnet an address is that is neither a container's, nor the bridge's,
 * nor the broadcast address. NULL if there is none.
 */
static __always_inline struct fbr_net *fbr_net_unused(fbr_addr addr)
{
	struct fbr_net *n = fbr_net_get(addr);
	struct fbr_dev *br = n ? fbr_dev_get(n->bridge) : NULL;

	return br && !fbr_addr_eq(fbr_dev_ip(br), addr) && !fbr_addr_eq(n->broadcast, addr) &&
			       !bpf_map_lookup_elem(&fbr_hosts, &addr)
		       ? n
		       : NULL;
}

/* Whether an address in a network's subnet is nevertheless the host's: a device has got it
 * after the network was created.
 */
static __always_inline bool fbr_owns(void *ctx, __u32 ifindex, fbr_addr addr)
{
	struct fbr_net *n = fbr_net_unused(addr);

	return n &&
	       fbr_fib_ask(ctx, FBR_ASK(ifindex, n->bridge), addr) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

__fbr_global bool fbr_host_owns(struct __sk_buff *skb, fbr_addr_arg addr)
{
	return FBR_GIVEN(addr) && fbr_owns(skb, skb->ifindex, FBR_ADDR(addr));
}

/* Whether the kernel routes an address in a network's subnet out by uplink u. This happens
 * if the uplink has got an address whose subnet lies within the network's.
 */
static __always_inline bool fbr_beyond(void *ctx, const struct fbr_dev *u, fbr_addr addr)
{
	struct fbr_net *n = fbr_net_unused(addr);
	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);

	if (!fib || !n)
		return false;
	fbr_fib_to(fib, FBR_ASK(u->ifindex, n->bridge), addr);
	return !bpf_fib_lookup(ctx, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH) &&
	       fib->ifindex == u->ifindex;
}

__fbr_global bool fbr_lies_beyond(struct __sk_buff *skb, const struct fbr_dev *u, fbr_addr_arg addr)
{
	return u && FBR_GIVEN(addr) && fbr_beyond(skb, u, FBR_ADDR(addr));
}

/* The network of a source or destination address that is leaving by an uplink. NULL if the
 * address may be seen outside.
 */
static __always_inline struct fbr_net *fbr_net_hidden(struct __sk_buff *skb, fbr_addr_arg addr)
{
	struct fbr_net *n = fbr_net_get(FBR_ADDR(addr));

	return n && skb->ingress_ifindex != n->bridge && fbr_host_owns(skb, addr) ? NULL : n;
}

/* The source address that the kernel would choose towards daddr on this device, and the
 * route's MTU (bytes, L3). iif is the device by whose rules it routes, 0 for those of the
 * host's own packets. If the kernel cannot tell (before 6.7), the stored ones, as long as the
 * address is still the host's. 0: there is none.
 */
__fbr_returns_addr fbr_addr fbr_route(struct __sk_buff *skb, const struct fbr_dev *u, __u32 iif,
				      fbr_addr_arg daddr, __u16 *mtu)
{
	if (!u || !mtu)
		return FBR_NO_ADDR;

	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);
	int verdict;

	*mtu = u->mtu;
	if (!cfg_fib_src || !fib)
		goto stored;
	fbr_fib_to(fib, iif ?: u->ifindex, FBR_ADDR(daddr));
	fib->tot_len = 1; /* asks for the route's MTU */
	if (bpf_fib_lookup(skb, fib, sizeof(*fib),
			   (iif ? 0 : BPF_FIB_LOOKUP_OUTPUT) | BPF_FIB_LOOKUP_SRC |
				   BPF_FIB_LOOKUP_SKIP_NEIGH) ||
	    (iif && fib->ifindex != u->ifindex))
		goto stored;
	if (fib->mtu_result)
		*mtu = fib->mtu_result;
	/* Where the uplink has no global address, IPv6 chooses another device's, or a link-local
	 * one.
	 */
	return FBR_AF == 6 && (fbr_net_get(fbr_fib_src(fib)) || !fbr_routable(fbr_fib_src(fib)))
		       ? FBR_NO_ADDR
		       : fbr_fib_src(fib);
stored:
	verdict = fbr_dev_has_ip(u)
			  ? fbr_fib_verdict(skb, FBR_ASK(u->ifindex, iif), FBR_DEV_IP_ARG(u))
			  : 0;
	return verdict == BPF_FIB_LKUP_RET_NOT_FWDED || verdict == BPF_FIB_LKUP_RET_FWD_DISABLED
		       ? fbr_dev_ip(u)
		       : FBR_NO_ADDR;
}

/* The device by whose rules the kernel routes what the network n sends: of IPv4, only with
 * FBR_NET_VIA has it rules of its own.
 */
static __always_inline __u32 fbr_routed_as(const struct fbr_net *n)
{
	return FBR_ASK(n->flags & FBR_NET_VIA ? n->bridge : 0, n->bridge);
}

/* The same for what the network of addr sends, which may say which address that is. There is
 * none if that is not the host's any more, or if the network may not leave by u.
 */
__fbr_returns_addr fbr_addr fbr_source_of(struct __sk_buff *skb, const struct fbr_dev *u,
					  fbr_addr_arg addr, fbr_addr_arg daddr, __u16 *mtu)
{
	struct fbr_net *n = FBR_GIVEN(addr) ? fbr_net_get(FBR_ADDR(addr)) : NULL;
	fbr_addr ext;

	if (!u || !mtu || !n || !fbr_net_leads(n, u->ifindex))
		return FBR_NO_ADDR;
	ext = fbr_route(skb, u, fbr_routed_as(n), daddr, mtu);
	if (n->flags & FBR_NET_OWN)
		return FBR_ADDR(addr);
	if (n->flags & FBR_NET_SNAT)
		return fbr_delivers(skb, FBR_ASK(u->ifindex, n->bridge), FBR_ARG(n->snat))
			       ? n->snat
			       : FBR_NO_ADDR;
	return ext;
}

/* The same for what the port sends from its address saddr. */
static __always_inline fbr_addr fbr_source(struct __sk_buff *skb, const struct fbr_dev *u,
					   const struct fbr_dev *port, fbr_addr_arg saddr,
					   fbr_addr_arg daddr, __u16 *mtu)
{
	return port && (port->flags & FBR_DEV_SOURCE)
		       ? fbr_source_of(skb, u, saddr, daddr, mtu)
		       : fbr_route(skb, u, FBR_ASK(0, port ? port->bridge : 0), daddr, mtu);
}

/* The same for a packet with the key k, written to ext. Returns the MTU of the way (bytes,
 * L3).
 */
__fbr_global6 __u32 fbr_exit(struct __sk_buff *skb, const struct fbr_dev *u,
			     const struct fbr_dev *port, const struct fbr_flow_key *k,
			     fbr_addr *ext)
{
	__u16 mtu = 0;

	if (!k || !ext)
		return 0;
	*ext = fbr_source(skb, u, port, FBR_ARG(k->saddr), FBR_ARG(k->daddr), &mtu);
	return fbr_dst_mtu(skb, mtu);
}

/* The MTU (bytes, L3) of the way to daddr for what the network n sends by u as it is. */
__fbr_global6 __u32 fbr_exit_mtu(struct __sk_buff *skb, const struct fbr_dev *u,
				 const struct fbr_net *n, fbr_addr_arg daddr)
{
	__u16 mtu = 0;

	if (!u || !n || !FBR_GIVEN(daddr))
		return 0;
	fbr_route(skb, u, fbr_routed_as(n), daddr, &mtu);
	return fbr_dst_mtu(skb, mtu);
}

#endif
