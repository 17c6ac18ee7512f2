/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The address family. The same programs are compiled once for IPv4 (-DFBR_AF=4) and once for
 * IPv6 (-DFBR_AF=6). What the families differ in has the same names in af4.h and af6.h. The
 * other headers speak of addresses (fbr_addr), IP headers (fbr_ip) and ICMP (FBR_ICMP), and
 * mean those of the family that they are compiled for.
 */
#ifndef FBR_AF_H
#define FBR_AF_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

static __always_inline __u16 fbr_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

#ifndef FBR_AF
#define FBR_AF 4
#endif

#if FBR_AF == 4
#include "af4.h"
#define FBR_AF_DEVICE   "device4.h"
#define FBR_AF_HOSTPORT "hostport4.h"
#define FBR_AF_IP       "ip4.h"
#define FBR_AF_REWRITE  "rewrite4.h"
#else
#include "af6.h"
#define FBR_AF_DEVICE   "device6.h"
#define FBR_AF_HOSTPORT "hostport6.h"
#define FBR_AF_IP       "ip6.h"
#define FBR_AF_REWRITE  "rewrite6.h"
#endif

#define FBR_ADDR_BITS (8 * sizeof(fbr_addr)) /* of a prefix that is one address */

/* The 64-bit words of a flow's key: addresses, then ports and protocol. */
#define FBR_KEY_WORDS (2 * sizeof(fbr_addr) / 8 + 1)

#define FBR_ICMP_ID   4 /* offset in the ICMP header */

#endif
