/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv4 (af.h). Addresses are in network byte order. */
#ifndef FBR_AF4_H
#define FBR_AF4_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "kctx.h"

typedef __be32 fbr_addr;
typedef __be16 fbr_ip_id;
typedef struct iphdr fbr_ip;

/* An address as an argument of a global function. FBR_ARG passes an address, FBR_GIVEN says
 * whether there is one, and FBR_ADDR is its value.
 */
typedef fbr_addr fbr_addr_arg;
#define FBR_ARG(addr)            (addr)
#define FBR_GIVEN(arg)           true
#define FBR_ADDR(arg)            (arg)
#define FBR_ADDR_AT(arg)         (&(arg)) /* where it is */
/* Of a function that returns an address */
#define __fbr_returns_addr       __fbr_global
/* Of a function that needs much stack for IPv6 only */
#define __fbr_global6            static __always_inline
/* Of one that needs more for IPv6 if it is */
#define __fbr_global4            __fbr_global

#define FBR_KERNEL_NAME          "fbr" /* how the names begin that the kernel has of the programs */
#define FBR_NO_ADDR              0
#define FBR_FAMILY               AF_INET
#define FBR_ETH_P                ETH_P_IP

/* Of a struct bpf_fib_lookup */
#define fbr_fib_src(fib)         ((fib)->ipv4_src)
#define fbr_fib_dst(fib)         ((fib)->ipv4_dst)

/* The device (ifindex) by which bpf_fib_lookup() is asked about what comes in by the device of
 * this ifindex. bridge is one of ours.
 */
#define FBR_ASK(ifindex, bridge) (ifindex)

#define FBR_ICMP                 IPPROTO_ICMP
#define FBR_ICMP_ECHO            ICMP_ECHO
#define FBR_ICMP_ECHOREPLY       ICMP_ECHOREPLY
#define FBR_ICMP_UNREACH         ICMP_DEST_UNREACH
#define FBR_ICMP_NO_PORT         ICMP_PORT_UNREACH /* code */
#define FBR_ICMP_FILTERED        ICMP_PKT_FILTERED /* code */
#define FBR_ICMP_REDIRECT        ICMP_REDIRECT

#define FBR_ICMP_PSEUDO          false

#define FBR_GSO_TCP              SKB_GSO_TCPV4
#define FBR_NF_HOOKS             hooks_ipv4
#define FBR_BRNF_SWITCH          "bridge-nf-call-iptables"
#define FBR_BRNF_OPTION          BROPT_NF_CALL_IPTABLES
#define FBR_BRNF_BIT             2 /* its number since Linux 4.20 */

#define fbr_addr_eq(a, b)        ((a) == (b))
#define fbr_addr_zero(a)         (!(a))
#define fbr_addr_and(a, b)       ((a) & (b))
#define fbr_addr_word(a)         (a) /* in 32 bits, for hashes */

static __always_inline bool fbr_loopback_or_zero(fbr_addr a)
{
	return (a & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) ||
	       (a & bpf_htonl(0xff000000)) == 0;
}

static __always_inline bool fbr_multicast(fbr_addr a)
{
	return (a & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
}

/* Such an address is one like any other: it may be translated to. */
#define fbr_link_local(a) false

/* Everybody on the link */
#define fbr_broadcast(a)  ((a) == 0xffffffff)

/* Whether an ICMP message of this type quotes the packet that it is about. */
static __always_inline bool fbr_icmp_is_error(__u8 type)
{
	switch (type) {
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_REDIRECT:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return true;
	}
	return false;
}

/* The one's complement difference that turns the sum over old into the sum over new. */
static __always_inline __u16 fbr_addr_diff(fbr_addr old, fbr_addr new)
{
	old = ~old;
	return fbr_fold((old & 0xffff) + (old >> 16) + (new & 0xffff) + (new >> 16));
}

/* The part of a struct bpf_sock_tuple */
#define FBR_TUPLE              ipv4
#define FBR_TUPLE_LEN          sizeof(((struct bpf_sock_tuple *)0)->FBR_TUPLE)

#define fbr_addr_put(to, from) ((to) = (from))

/* Writes an address into a packet. */
#define fbr_addr_set(to, from) (*(to) = *(from))

/* The address of a tuple of connection tracking. */
#define FBR_CT_ADDR(ct, man)   BPF_CORE_READ(ct, man.u3.ip)

static __always_inline union nf_inet_addr fbr_nf_addr(fbr_addr a)
{
	return (union nf_inet_addr){ .ip = a };
}

/* A hash of the words of a flow's key but the last (FBR_KEY_WORDS), to be mixed with that. */
#define fbr_addrs_hash(words, secret)                                       \
	({                                                                  \
		__u64 hash_ = ((words)[0] + (secret)) * 0x9e3779b97f4a7c15; \
		hash_ ^ hash_ >> 32;                                        \
	})

/* Whether two keys are the same. have may change meanwhile. */
static __always_inline bool fbr_words_same(const volatile __u64 *have, const __u64 *want)
{
	return have[1] == want[1] && have[0] == want[0];
}

/* Copies a key to where others may read it meanwhile. */
static __always_inline void fbr_words_set(volatile __u64 *to, const __u64 *key)
{
	to[0] = key[0];
	to[1] = key[1];
}

/* Whether the host forwards packets, whatever the setting of the device is. */
static __always_inline bool fbr_forwards(struct net *net)
{
	return net->ipv4.devconf_all->data[0];
}

/* Whether a packet in POSTROUTING is forwarded. What a tunnel of the host has wrapped is the
 * host's own.
 */
static __always_inline bool fbr_forwarded(struct bpf_nf_ctx *ctx)
{
	struct inet_skb_parm *cb =
		bpf_rdonly_cast(ctx->skb->cb, bpf_core_type_id_kernel(struct inet_skb_parm));

	return cb->flags & IPSKB_FORWARDED;
}

/* The route's MTU is what bpf_fib_lookup() says (fbr_route). */
#define fbr_dst_mtu(skb, mtu) (mtu)

/* Whether a packet keeps its link going. For IPv4 that is ARP's affair. */
#define fbr_link_affair(p)    false

/* Begins the address of a next hop (hop.h) with the destination of a packet. An IPv4 address
 * stands in the first word.
 */
#define FBR_HOP_INIT(daddr)   .addr[0] = (daddr)

/* The next hop of a packet for daddr whose route is dst. */
static __always_inline void fbr_next_hop_of(unsigned long dst, fbr_addr_arg daddr, __be32 (*hop)[4])
{
	struct rtable *rt = bpf_rdonly_cast((void *)dst, bpf_core_type_id_kernel(struct rtable));

	if (rt->rt_gw_family == AF_INET)
		(*hop)[0] = rt->rt_gw4;
	else if (rt->rt_gw_family)
		BPF_CORE_READ_INTO(hop, rt, rt_gw6);
}

#endif
