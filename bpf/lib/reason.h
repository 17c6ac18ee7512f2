/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Why a packet was dropped. Append-only: the number is an index into fbr_drops of a running
 * instance, and the name in lower case, without the prefix, is the metric's label, which Go
 * reads from the BTF of this enum.
 */
#ifndef FBR_REASON_H
#define FBR_REASON_H

#include "../include/kernel.h"

enum fbr_reason {
	FBR_NONE = 0,
	FBR_SPOOF_MAC,   /* source MAC is not the port's */
	FBR_SPOOF_IP,    /* source address, or what neighbour discovery tells, is not the port's */
	FBR_SPOOF_ARP,   /* ARP sender is not the port's */
	FBR_L2_PROTO,    /* neither untagged IPv4 nor ARP, nor IPv6 where the network has it */
	FBR_ISOLATED,    /* between networks, or in or out of an internal one */
	FBR_NO_UPLINK,   /* a container's source leaving by a device that is no uplink */
	FBR_DIRECT,      /* from outside to a container's own address */
	FBR_MARTIAN,     /* addresses that cannot come from outside */
	FBR_FOREIGN,     /* the stack's RST or port unreachable for a port of the range */
	FBR_UNSUPPORTED, /* cannot be translated (yet) */
	FBR_NAT_FULL,    /* no slot or external port left */
	FBR_QUOTA,       /* the container has used its share */
	FBR_FRAGMENT,    /* a fragment without its first, or too many datagrams in fragments */
	FBR_FILTERED,    /* unsolicited, to another container's external port */
	/* The checksum of an ICMP error, or of the header it quotes, is wrong. Or a
	 * checksum is to be filled in where there is none.
	 */
	FBR_BAD_CSUM,
	FBR_REASON_MAX = 16,
	/* Not a reason, never counted: the packet does not concern the function, which has
	 * left it untouched.
	 */
	FBR_NOT_OURS = 255,
};

_Static_assert(FBR_NOT_OURS >= FBR_REASON_MAX, "FBR_NOT_OURS is not counted");

#endif
