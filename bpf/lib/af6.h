/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 (af.h). Addresses are in network byte order. */
#ifndef FBR_AF6_H
#define FBR_AF6_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "kctx.h"

/* Aligned to four bytes, so that no key of a map has padding. */
typedef struct in6_addr fbr_addr;

typedef __be32 fbr_ip_id;

typedef struct {
	__be32 version; /* and traffic class, flow label */
	__be16 payload_len;
	__u8 protocol; /* or of the first extension header */
	__u8 ttl;
	fbr_addr saddr;
	fbr_addr daddr;
} fbr_ip;

_Static_assert(sizeof(fbr_ip) == 40, "the IPv6 header");

typedef const fbr_addr *fbr_addr_arg;
#define FBR_ARG(addr)            (&(addr))
#define FBR_GIVEN(arg)           ((arg) != NULL)
#define FBR_ADDR(arg)            (*(arg))
#define FBR_ADDR_AT(arg)         (arg)
/* A global function returns a number, which this is not. */
#define __fbr_returns_addr       static __always_inline
#define __fbr_global6            __fbr_global
#define __fbr_global4            static __always_inline

#define FBR_KERNEL_NAME          "fbr6"
#define FBR_NO_ADDR              ((fbr_addr){})
#define FBR_FAMILY               AF_INET6
#define FBR_ETH_P                ETH_P_IPV6

#define fbr_fib_src(fib)         ((fib)->ipv6_src)
#define fbr_fib_dst(fib)         ((fib)->ipv6_dst)

/* bpf_fib_lookup() has no answer for a device whose "forwarding" is 0, as an uplink's may be
 * though the kernel forwards what comes in by it. That of our bridges is 1.
 */
#define FBR_ASK(ifindex, bridge) (bridge)

#define FBR_ICMP                 IPPROTO_ICMPV6
#define FBR_ICMP_ECHO            ICMPV6_ECHO
#define FBR_ICMP_ECHOREPLY       ICMPV6_ECHOREPLY
#define FBR_ICMP_UNREACH         ICMPV6_DEST_UNREACH
#define FBR_ICMP_NO_PORT         ICMPV6_PORT_UNREACH   /* code */
#define FBR_ICMP_FILTERED        ICMPV6_ADM_PROHIBITED /* code */
#define FBR_ICMP_REDIRECT        ICMPV6_REDIRECT

#define FBR_ICMP_PSEUDO          true /* the checksum covers the pseudo header */

#define FBR_GSO_TCP              SKB_GSO_TCPV6
#define FBR_NF_HOOKS             hooks_ipv6
#define FBR_BRNF_SWITCH          "bridge-nf-call-ip6tables"
#define FBR_BRNF_OPTION          BROPT_NF_CALL_IP6TABLES
#define FBR_BRNF_BIT             3 /* its number since Linux 4.20 */

static __always_inline bool fbr_addr_eq(fbr_addr a, fbr_addr b)
{
	return !((a.word[0] ^ b.word[0]) | (a.word[1] ^ b.word[1]) | (a.word[2] ^ b.word[2]) |
		 (a.word[3] ^ b.word[3]));
}

static __always_inline bool fbr_addr_zero(fbr_addr a)
{
	return !(a.word[0] | a.word[1] | a.word[2] | a.word[3]);
}

static __always_inline fbr_addr fbr_addr_and(fbr_addr a, fbr_addr mask)
{
	return (fbr_addr){ { a.word[0] & mask.word[0], a.word[1] & mask.word[1],
			     a.word[2] & mask.word[2], a.word[3] & mask.word[3] } };
}

static __always_inline __u32 fbr_addr_word(fbr_addr a)
{
	return a.word[0] * 0x9e3779b1 ^ a.word[1] * 0x85ebca6b ^ a.word[2] * 0xc2b2ae35 ^ a.word[3];
}

/* No interface of another machine has such an address: ::, ::1, and the IPv4-mapped and
 * IPv4-compatible ones (RFC 4291 section 2.5.5), whose first 80 bits are 0.
 */
static __always_inline bool fbr_loopback_or_zero(fbr_addr a)
{
	return !(a.word[0] | a.word[1]) && (!a.word[2] || a.word[2] == bpf_htonl(0xffff));
}

static __always_inline bool fbr_multicast(fbr_addr a)
{
	return (a.word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Link-local: never routed */
static __always_inline bool fbr_link_local(fbr_addr a)
{
	return (a.word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* IPv6 has none: groups do its work. */
static __always_inline bool fbr_broadcast(fbr_addr a)
{
	return false;
}

static __always_inline bool fbr_icmp_is_error(__u8 type)
{
	return type < 128 || type == ICMPV6_REDIRECT;
}

static __always_inline __u16 fbr_addr_diff(fbr_addr old, fbr_addr new)
{
	__u64 sum = 0;
	int i;

	for (i = 0; i < 4; i++)
		sum += (__u64)(__u32)~old.word[i] + new.word[i];
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return fbr_fold(sum);
}

#define FBR_TUPLE              ipv6
#define FBR_TUPLE_LEN          sizeof(((struct bpf_sock_tuple *)0)->FBR_TUPLE)

/* Writes an address to a field of another type. */
#define fbr_addr_put(to, from) __builtin_memcpy(to, &(from), sizeof(fbr_addr))

/* In stores of eight bytes, as the next reader loads it (fbr_fast_key). */
static __always_inline void fbr_addr_set(fbr_addr *to, const fbr_addr *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

#define FBR_CT_ADDR(ct, man)                                            \
	({                                                              \
		fbr_addr addr_;                                         \
		bpf_core_read(&addr_, sizeof(addr_), &(ct)->man.u3.ip); \
		addr_;                                                  \
	})

static __always_inline union nf_inet_addr fbr_nf_addr(fbr_addr a)
{
	return (union nf_inet_addr){ .in6 = a };
}

/* Four multiplications that do not wait for each other. The secret comes before them, so
 * that nobody outside knows which addresses collide.
 */
static __always_inline __u64 fbr_addrs_hash(const __u64 *words, __u32 secret)
{
	__u64 s = secret * 0x9e3779b97f4a7c15ULL;
	__u64 a = (words[0] ^ s) * 0x9e3779b97f4a7c15, b = (words[1] + s) * 0xc2b2ae3d27d4eb4f;
	__u64 c = (words[2] ^ ~s) * 0x165667b19e3779f9, d = (words[3] - s) * 0x27d4eb2f165667c5;

	return (a ^ a >> 32) + (b ^ b >> 29) + (c ^ c >> 31) + (d ^ d >> 33);
}

static __always_inline bool fbr_words_same(const volatile __u64 *have, const __u64 *want)
{
	return !((have[4] ^ want[4]) | (have[0] ^ want[0]) | (have[1] ^ want[1]) |
		 (have[2] ^ want[2]) | (have[3] ^ want[3]));
}

static __always_inline void fbr_words_set(volatile __u64 *to, const __u64 *key)
{
	__u32 i;

	for (i = 0; i < 5; i++)
		to[i] = key[i];
}

static __always_inline bool fbr_forwards(struct net *net)
{
	return net->ipv6.devconf_all->forwarding;
}

/* Whether a packet in POSTROUTING is forwarded. The kernel marks only what it forwards to
 * groups. But it says in which device a packet has come to the IPv6 stack (ip6_output): none,
 * or a tunnel that has wrapped it, if it is the host's own. Only if it is forwarded, that is
 * the device that has received it. A function of its own, so that clang computes no address
 * in the context.
 */
static __noinline bool fbr_forwarded(struct bpf_nf_ctx *ctx)
{
	struct net_device *in = ctx->state->in;

	return in && in->ifindex == ctx->skb->skb_iif;
}

/* The MTU of the route of a packet that the kernel forwards, of which bpf_fib_lookup() has said
 * mtu. It leaves out one that is not locked.
 */
__fbr_global __u32 fbr_dst_mtu(struct __sk_buff *skb, __u32 mtu)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct dst_entry *dst = (void *)(k->_skb_refdst & ~SKB_DST_NOREF);
	unsigned long metrics;
	__u32 own = 0;

	if (!dst)
		return mtu;
	metrics = BPF_CORE_READ(dst, _metrics) & ~DST_METRICS_FLAGS;
	bpf_probe_read_kernel(&own, sizeof(own), (void *)metrics + (RTAX_MTU - 1) * sizeof(own));
	return own && own < mtu ? own : mtu;
}

#define FBR_HOP_INIT(daddr) .addr = {} /* daddr may be NULL */

static __always_inline void fbr_next_hop_of(unsigned long dst, fbr_addr_arg daddr, __be32 (*hop)[4])
{
	struct rt6_info *rt =
		bpf_rdonly_cast((void *)dst, bpf_core_type_id_kernel(struct rt6_info));

	if (rt->rt6i_flags & RTF_GATEWAY)
		BPF_CORE_READ_INTO(hop, rt, rt6i_gateway);
	else
		__builtin_memcpy(hop, daddr, sizeof(*hop));
}

#endif
