/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Anti-spoofing: a port may send only untagged IPv4, ARP and IPv6, and only with its own and
 * its allowed addresses. The checks return FBR_NONE or the reason to drop.
 */
#ifndef FBR_PORT_H
#define FBR_PORT_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "csum.h"
#include "device.h"
#include "l2.h"
#include "reason.h"

#define FBR_IP6_EXT_MAX 6 /* extension headers followed before giving up */

#define ICMPV6_RA       134
/* Neighbour discovery: 133 to 137, and 148 and 149 of SEND */
#define ICMPV6_ND(type) (((type) >= 133 && (type) <= 137) || (type) == 148 || (type) == 149)

/* The ifindex of the port of a bridge with a MAC address, given by its first two and last
 * four bytes; 0 if there is none.
 */
__fbr_global __u32 fbr_fdb_find(__u16 begin, __u32 end, __u32 bridge)
{
	struct fbr_fdb_key k = { .bridge = bridge };
	__u32 *found;

	*(__u16 *)&k.mac[0] = begin;
	__builtin_memcpy(&k.mac[2], &end, sizeof(end));
	found = bpf_map_lookup_elem(&fbr_fdb, &k);
	return found ? *found : 0;
}

/* The port of a bridge with a MAC address, or NULL. */
static __always_inline struct fbr_dev *fbr_mac_port(const __u8 *mac, __u32 bridge)
{
	struct fbr_dev *t = fbr_dev_get(fbr_fdb_find(*(__u16 *)mac, *(__u32 *)&mac[2], bridge));

	return t && t->bridge == bridge ? t : NULL;
}

/* Whether an IPv6 frame stays on the bridge: it may go to the bridge's ports and to groups.
 * The host has no IPv6 there. If the bridge gets an address all the same, nobody must find
 * a way out by it. Returns FBR_NONE or the reason to drop it.
 */
static __always_inline enum fbr_reason fbr_ip6_stays(const struct ethhdr *eth, void *data_end,
						     const struct fbr_dev *p)
{
	const __u8 *group = (const __u8 *)(eth + 1) + 24; /* of the destination address */
	struct fbr_dev *t;

	if ((void *)(group + 1) > data_end)
		return FBR_L2_PROTO;
	if (eth->h_dest[0] & 1)
		return *group == 0xff ? FBR_NONE : FBR_ISOLATED;
	t = fbr_mac_port(eth->h_dest, p->bridge);
	return t ? FBR_NONE : FBR_ISOLATED;
}

/* Drops router advertisements and redirects, which only a router may send (CVE-2020-13401),
 * also behind extension headers. A first fragment must show its whole header chain (RFC
 * 7112) and must not be neighbour discovery (RFC 6980). Later fragments are useless without
 * it.
 */
__fbr_global enum fbr_reason fbr_check_ip6(struct __sk_buff *skb)
{
	__u32 off = ETH_HLEN + sizeof(struct ipv6hdr);
	struct ipv6hdr ip6;
	__u8 next, ext[8], type;
	bool frag = false;
	int i;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6)))
		return FBR_L2_PROTO;
	next = ip6.nexthdr;
	for (i = 0; i < FBR_IP6_EXT_MAX; i++) {
		if (next == IPPROTO_ICMPV6) {
			if (bpf_skb_load_bytes(skb, off, &type, 1))
				return FBR_SPOOF_IP; /* not visible */
			if (type == ICMPV6_RA || type == ICMPV6_REDIRECT ||
			    (frag && ICMPV6_ND(type)))
				return FBR_SPOOF_IP;
		}
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT) {
			enum fbr_pending sum = fbr_sum_pending(skb, off, next);

			return (frag ? sum != FBR_SUM_DONE : sum == FBR_SUM_BAD) ? FBR_BAD_CSUM
										 : FBR_NONE;
		}
		if (bpf_skb_load_bytes(skb, off, ext, sizeof(ext)))
			return FBR_L2_PROTO;
		if (next == IPPROTO_FRAGMENT) {
			if (ext[2] || ext[3] & 0xf8)
				return fbr_ip_summed(skb) == CHECKSUM_PARTIAL ? FBR_BAD_CSUM
									      : FBR_NONE;
			frag = true;
			off += 8;
		} else {
			off += (ext[1] + 1) * 8;
		}
		next = ext[0];
	}
	return FBR_L2_PROTO;
}

#endif
