/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Facts about an IPv4 address that follow from the address alone. Network byte order. */
#ifndef FBR_ADDR_H
#define FBR_ADDR_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"

static __always_inline bool fbr_loopback_or_zero(__be32 a)
{
	return (a & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) ||
	       (a & bpf_htonl(0xff000000)) == 0;
}

static __always_inline bool fbr_multicast(__be32 a)
{
	return (a & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
}

#endif
