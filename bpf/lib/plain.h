/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What leaves a network as it is: everything if the network is not translated, otherwise what
 * is for destinations that are excepted. These see containers' own addresses, and may reach
 * them.
 */
#ifndef FBR_PLAIN_H
#define FBR_PLAIN_H

#include "device.h"
#include "parse.h"

#define FBR_PLAIN_MAX 16384 /* excepted destinations of all networks */

/* fbr_plain: longest prefix match over the bridge and an address */
struct fbr_plain_key {
	__u32 prefixlen; /* 32 more than the destination's */
	__u32 bridge;    /* ifindex */
	fbr_addr addr;
};

/* Excepted destinations. Only the kernel's path reads them, and only for networks with
 * FBR_NET_PLAIN.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, FBR_PLAIN_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_plain_key);
	__type(value, __u32); /* 1 */
} fbr_plain SEC(".maps");

/* Whether packets between the network n and the remote address pass as they are. */
__fbr_global6 bool fbr_plain_to(const struct fbr_net *n, fbr_addr_arg remote)
{
	if (!n || !FBR_GIVEN(remote))
		return false;

	struct fbr_plain_key k = { .prefixlen = 32 + FBR_ADDR_BITS,
				   .bridge = n->bridge,
				   .addr = FBR_ADDR(remote) };

	if (n->flags & FBR_NET_INTERNAL)
		return false;
	if (!(n->flags & FBR_NET_MASQUERADE))
		return true;
	return (n->flags & FBR_NET_PLAIN) && bpf_map_lookup_elem(&fbr_plain, &k);
}

/* The remote of a packet from outside to a container: its source. An ICMP error may come from
 * any router on the way: then it is the destination of the packet that it quotes, which the
 * container has sent.
 */
__fbr_returns_addr fbr_addr fbr_remote(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	struct fbr_pkt in;

	if (!p)
		return FBR_NO_ADDR;
	if (p->kind == FBR_L4_ICMP_ERR && !p->frag &&
	    !fbr_parse_at(skb, p->l4 + sizeof(struct icmphdr), &in) &&
	    fbr_addr_eq(in.saddr, p->daddr))
		return in.daddr;
	return p->saddr;
}

/* Whether a packet from outside may reach a container's own address, which is its
 * destination.
 */
__fbr_global bool fbr_plain_in(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	struct fbr_net *n = p ? fbr_net_get(p->daddr) : NULL;
	fbr_addr remote;

	if (!n)
		return false;
	remote = fbr_remote(skb, p);
	return fbr_plain_to(n, FBR_ARG(remote));
}

#endif
