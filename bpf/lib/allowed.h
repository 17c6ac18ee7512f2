/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Allowed addresses: what a port may send with besides its container's own addresses. A
 * router forwards for others, an address moves between two containers (VRRP), and a
 * container with macvlan devices has several MAC addresses.
 *
 * Which port may use what is exact, and checked before anything else about a packet. Several
 * ports may have an allowed address in common: the one that has sent with it last holds it.
 */
#ifndef FBR_ALLOWED_H
#define FBR_ALLOWED_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "device.h"
#include "instance.h"
#include "l2.h"
#include "lease.h"

#define FBR_ALLOWED_MAX 65536 /* entries of fbr_allowed and of fbr_allowed_mac */

/* A prefix that a port may use. prefixlen counts the bits of the port's ifindex, too. */
struct fbr_allowed_key {
	__u32 prefixlen;
	__u32 port; /* ifindex */
	fbr_addr addr;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, FBR_ALLOWED_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_allowed_key);
	__type(value, __u32); /* always 1 */
} fbr_allowed SEC(".maps");

/* A MAC address that a port may use. */
struct fbr_allowed_mac_key {
	__u32 port; /* ifindex */
	__u8 mac[6];
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_ALLOWED_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_allowed_mac_key);
	__type(value, __u32); /* always 1 */
} fbr_allowed_mac SEC(".maps");

/* An allowed address to the port that holds it. A port that sends so many addresses that
 * others are forgotten costs these nothing: their next packet brings them back.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4 * FBR_STATS_MAX);
	__type(key, fbr_addr);
	__type(value, __u32); /* ifindex */
} fbr_holder SEC(".maps");

__fbr_global bool fbr_addr_allowed(__u32 port, fbr_addr_arg addr)
{
	struct fbr_allowed_key k = { .prefixlen = 32 + FBR_ADDR_BITS, .port = port };

	if (!FBR_GIVEN(addr))
		return false;
	k.addr = FBR_ADDR(addr);
	return bpf_map_lookup_elem(&fbr_allowed, &k) != NULL;
}

/* The MAC address is given by its first two and last four bytes. */
__fbr_global bool fbr_mac_allowed(__u32 port, __u16 begin, __u32 end)
{
	struct fbr_allowed_mac_key k = { .port = port };

	*(__u16 *)&k.mac[0] = begin;
	__builtin_memcpy(&k.mac[2], &end, sizeof(end));
	return bpf_map_lookup_elem(&fbr_allowed_mac, &k) != NULL;
}

/* Whether an address is the port's, besides its container's own. */
static __always_inline bool fbr_port_also(const struct fbr_dev *p, fbr_addr_arg addr)
{
	return (p->flags & FBR_DEV_ALLOWED) && !fbr_port_is(p, addr) &&
	       fbr_addr_allowed(p->ifindex, addr);
}

/* Whether an address is the port's. */
static __always_inline bool fbr_port_has(const struct fbr_dev *p, fbr_addr_arg addr)
{
	return fbr_port_is(p, addr) || fbr_port_also(p, addr);
}

/* Whether a MAC address is the port's. */
static __always_inline bool fbr_port_has_mac(const struct fbr_dev *p, const __u8 *mac)
{
	__u32 end;

	if (fbr_mac_equal(mac, p->mac))
		return true;
	if (!(p->flags & FBR_DEV_ALLOWED))
		return false;
	__builtin_memcpy(&end, &mac[2], sizeof(end));
	return fbr_mac_allowed(p->ifindex, *(__u16 *)mac, end);
}

/* The port (ifindex) that holds an allowed address, or 0. */
__fbr_global __u32 fbr_held_by(fbr_addr_arg arg)
{
	if (!FBR_GIVEN(arg))
		return 0;

	fbr_addr addr = FBR_ADDR(arg);
	__u32 *holder = bpf_map_lookup_elem(&fbr_holder, &addr);
	struct fbr_dev *p = holder ? fbr_dev_get(*holder) : NULL;

	return p && fbr_port_also(p, FBR_ARG(addr)) ? p->ifindex : 0;
}

/* The port that an address belongs to: the container's own, or the one that holds it. NULL
 * if there is none.
 */
static __always_inline struct fbr_dev *fbr_addr_port(fbr_addr_arg addr)
{
	return fbr_host_port(addr) ?: fbr_dev_get(fbr_held_by(addr));
}

/* A port has sent a frame that may go to the kernel: it holds the addresses that the frame
 * comes from. If another port held the IP address, leases that lead there end.
 */
__fbr_global int fbr_hold(struct __sk_buff *skb, const struct fbr_dev *p)
{
	if (!p)
		return 0;

	struct fbr_fdb_key mac = { .bridge = p->bridge };
	struct fbr_conf *c = fbr_conf_get();
	__u32 port = p->ifindex, *holder;
	struct {
		__u8 source[ETH_ALEN];
		__be16 proto;
	} __attribute__((aligned(8))) eth;
	fbr_addr addr = FBR_NO_ADDR;
	__u32 at = 0;

	if (bpf_skb_load_bytes(skb, ETH_ALEN, &eth, sizeof(eth)))
		return 0;
	if (!fbr_mac_equal(eth.source, p->mac)) {
		__builtin_memcpy(mac.mac, eth.source, ETH_ALEN);
		holder = bpf_map_lookup_elem(&fbr_fdb, &mac);
		if (!holder || *holder != port)
			bpf_map_update_elem(&fbr_fdb, &mac, &port, BPF_ANY);
	}
	if (eth.proto == bpf_htons(FBR_ETH_P))
		at = fbr_addr_at(ETH_HLEN, true);
	else if (FBR_AF == 4 && eth.proto == bpf_htons(ETH_P_ARP))
		at = ETH_HLEN + offsetof(struct arphdr, ar_spa);
	if (!at || bpf_skb_load_bytes(skb, at, &addr, sizeof(addr)) || fbr_addr_zero(addr) ||
	    fbr_port_is(p, FBR_ARG(addr)))
		return 0;
	holder = bpf_map_lookup_elem(&fbr_holder, &addr);
	if (holder && *holder == port)
		return 0;
	if (holder && c)
		fbr_revoke(c);
	bpf_map_update_elem(&fbr_holder, &addr, &port, BPF_ANY);
	return 0;
}

#endif
