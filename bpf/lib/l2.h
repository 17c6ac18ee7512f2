/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Devices without an L2 header (tun, WireGuard, ppp): their packets begin with
 * the IP header. A redirect to one takes the frame's header off by itself; a
 * packet from one needs a header to be sent to any other device.
 */
#ifndef FBR_L2_H
#define FBR_L2_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"

/* Puts an Ethernet header, its addresses zero, before an IPv4 packet. Packet
 * pointers are void afterwards. Returns 0 or an error.
 */
static __always_inline long fbr_push_eth(struct __sk_buff *skb)
{
	__be16 proto = bpf_htons(ETH_P_IP);

	return bpf_skb_change_head(skb, ETH_HLEN, 0)
		       ?: bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &proto, sizeof(proto), 0);
}

#endif
