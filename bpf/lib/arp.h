/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP that a port sends: what it may say, and requests that are answered in place. */
#ifndef FBR_ARP_H
#define FBR_ARP_H

#include "../include/bpf/bpf_endian.h"
#include "allowed.h"
#include "csum.h"
#include "device.h"
#include "l2.h"
#include "reason.h"

#define ARPOP_REQUEST 1
#define ARPOP_REPLY   2

__fbr_global enum fbr_reason fbr_check_arp(struct __sk_buff *skb, const struct fbr_dev *p)
{
	if (!p)
		return FBR_SPOOF_ARP;

	struct arphdr arp;

	if (fbr_ip_summed(skb) == CHECKSUM_PARTIAL)
		return FBR_BAD_CSUM;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return FBR_SPOOF_ARP;
	if (arp.ar_hrd != bpf_htons(1) || arp.ar_pro != bpf_htons(ETH_P_IP) || arp.ar_hln != 6 ||
	    arp.ar_pln != 4)
		return FBR_SPOOF_ARP;
	if (arp.ar_op != bpf_htons(ARPOP_REQUEST) && arp.ar_op != bpf_htons(ARPOP_REPLY))
		return FBR_SPOOF_ARP;
	if (!fbr_port_has_mac(p, arp.ar_sha))
		return FBR_SPOOF_ARP;
	/* An address probe (RFC 5227) has no sender address yet. */
	if (!fbr_port_has(p, arp.ar_spa) &&
	    !(arp.ar_spa == 0 && arp.ar_op == bpf_htons(ARPOP_REQUEST)))
		return FBR_SPOOF_ARP;
	return FBR_NONE;
}

/* Answers a container's broadcast ARP request for its gateway or for another port of its
 * bridge. Their addresses are known here, so the request need not reach every port. Probes
 * and announcements (RFC 5227) are for everybody, and a port on the kernel's path answers
 * for itself. Returns whether the frame is now the answer, to be sent to the port. If not,
 * it is untouched.
 */
__fbr_global bool fbr_answer_arp(struct __sk_buff *skb, const struct fbr_dev *p)
{
	if (!p)
		return false;

	struct {
		struct ethhdr eth;
		struct arphdr arp;
	} __attribute__((packed)) a;
	struct fbr_dev *br, *t;
	__u8 mac[ETH_ALEN];
	__be32 asked;

	if (bpf_skb_load_bytes(skb, 0, &a, sizeof(a)))
		return false;
	asked = a.arp.ar_tpa;
	if (!(a.eth.h_dest[0] & 1) || a.arp.ar_op != bpf_htons(ARPOP_REQUEST) ||
	    a.arp.ar_spa == 0 || a.arp.ar_spa == asked)
		return false;
	br = fbr_dev_get(p->bridge);
	if (br && br->ip == asked) {
		__builtin_memcpy(mac, p->gw_mac, ETH_ALEN);
	} else {
		t = fbr_host_port(asked);
		if (!t || t->bridge != p->bridge || (t->flags & FBR_DEV_KERNEL_PATH))
			return false;
		__builtin_memcpy(mac, t->mac, ETH_ALEN);
	}
	__builtin_memcpy(a.eth.h_dest, a.arp.ar_sha, ETH_ALEN);
	__builtin_memcpy(a.eth.h_source, mac, ETH_ALEN);
	a.arp.ar_op = bpf_htons(ARPOP_REPLY);
	a.arp.ar_tpa = a.arp.ar_spa;
	a.arp.ar_spa = asked;
	__builtin_memcpy(a.arp.ar_tha, a.arp.ar_sha, ETH_ALEN);
	__builtin_memcpy(a.arp.ar_sha, mac, ETH_ALEN);
	return !bpf_skb_store_bytes(skb, 0, &a, sizeof(a), 0);
}

#endif
