/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What precedes the IP header: an Ethernet header, VLAN tags, or nothing. */
#ifndef FBR_L2_H
#define FBR_L2_H

#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "reason.h"

#define FBR_TAGS_MAX 8 /* tags taken off one frame */

static __always_inline bool fbr_mac_equal(const __u8 *a, const __u8 *b)
{
	return *(__u32 *)a == *(__u32 *)b && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

/* Whether the frame's outer tag is a priority tag, which names no VLAN (IEEE 802.1Q clause 6.9). */
static __always_inline bool fbr_priority_tagged(struct __sk_buff *skb)
{
	return skb->vlan_present && !(skb->vlan_tci & VLAN_VID_MASK);
}

/* Removes priority tags, as the kernel would do after us. The frame is then untagged or
 * belongs to a VLAN. Packet pointers are invalid afterwards. Returns FBR_NONE, or the
 * reason to drop a frame with too many tags.
 */
__fbr_global enum fbr_reason fbr_untag(struct __sk_buff *skb)
{
	int i;

	for (i = 0; i < FBR_TAGS_MAX && fbr_priority_tagged(skb); i++)
		if (bpf_skb_vlan_pop(skb))
			return FBR_L2_PROTO;
	return fbr_priority_tagged(skb) ? FBR_L2_PROTO : FBR_NONE;
}

/* Devices without an L2 header (tun, WireGuard, ppp): packets begin with the IP header. A
 * redirect to such a device removes the frame's header by itself. A packet from one needs a
 * header before it can be sent to any other device.
 */

/* Puts an Ethernet header with zero addresses before an IP packet. Packet pointers are
 * invalid afterwards. Returns 0 or an error.
 */
static __always_inline long fbr_push_eth(struct __sk_buff *skb)
{
	__be16 proto = bpf_htons(FBR_ETH_P);

	return bpf_skb_change_head(skb, ETH_HLEN, 0)
		       ?: bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &proto, sizeof(proto), 0);
}

#endif
