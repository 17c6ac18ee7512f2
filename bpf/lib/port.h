/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which port of a bridge has a MAC address. */
#ifndef FBR_PORT_H
#define FBR_PORT_H

#include "../include/bpf/bpf_helpers.h"
#include "device.h"

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

#endif
