/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whose IPv6 address is whose on a bridge.
 *
 * The control plane says which global addresses ports have. Link-local addresses that are
 * made of a MAC address (RFC 4291 appendix A) belong to the bridge or the port with that
 * MAC address; those made of an allowed one to every port that may use it. Every other
 * link-local address belongs to the port that has used it first, until the port is
 * detached (RFC 6620).
 */
#ifndef FBR_ADDR6_H
#define FBR_ADDR6_H

#include "af.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "allowed.h"
#include "device.h"
#include "l2.h"
#include "port.h"
#include "reason.h"

#define FBR_LINK_LOCALS 16 /* of a port, not counting the one made of its MAC address */

struct fbr_claim_key {
	fbr_addr addr;
	__u32 bridge;
};

/* Link-local address and bridge to port: first come, first served. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_LINK_LOCALS *FBR_STATS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_claim_key);
	__type(value, __u32); /* ifindex */
} fbr_claims SEC(".maps");

/* A group of hosts on this link (RFC 4291 section 2.7: interface- and link-local scope). */
static __always_inline bool fbr_link_group(fbr_addr a)
{
	__u32 scope = bpf_ntohl(a.word[0]) >> 16 & 0xf;

	return fbr_multicast(a) && (scope == 1 || scope == 2);
}

/* Whether a link-local address is made of a MAC address, which is written to mac. */
static __always_inline bool fbr_eui64(fbr_addr a, __u8 *mac)
{
	if (a.word[0] != bpf_htonl(0xfe800000) || a.word[1] ||
	    (a.word[2] & bpf_htonl(0xff)) != bpf_htonl(0xff) ||
	    (a.word[3] & bpf_htonl(0xff000000)) != bpf_htonl(0xfe000000))
		return false;
	/* The universal bit is inverted. */
	*(__u16 *)mac = a.word[2] ^ bpf_htons(0x0200);
	mac[2] = a.word[2] >> 16;
	mac[3] = a.word[3] >> 8;
	*(__u16 *)&mac[4] = a.word[3] >> 16;
	return true;
}

/* The device (ifindex) on p's bridge that a link-local address belongs to: the bridge, p or
 * another port. 0: nobody's.
 */
static __always_inline __u32 fbr_link_owner(const struct fbr_dev *p, const struct fbr_claim_key *k)
{
	__u8 mac[8] __attribute__((aligned(4)));
	__u32 *holder;
	struct fbr_dev *t;

	if (fbr_eui64(k->addr, mac)) {
		if (fbr_mac_equal(mac, p->gw_mac))
			return p->bridge;
		if (fbr_port_has_mac(p, mac))
			return p->ifindex;
		t = fbr_mac_port(mac, p->bridge);
		if (t)
			return t->ifindex;
	}
	holder = bpf_map_lookup_elem(&fbr_claims, k);
	t = holder ? fbr_dev_get(*holder) : NULL;
	return t && t->bridge == p->bridge ? t->ifindex : 0;
}

/* The device (ifindex) that an address belongs to, as p sees it: a port of any bridge, or
 * p's own bridge. 0: nobody's, or of somebody who is only allowed to use it.
 */
__fbr_global __u32 fbr_owner(const struct fbr_dev *p, const fbr_addr *addr)
{
	struct fbr_claim_key k = {};
	struct fbr_dev *t;

	if (!p || !addr || fbr_loopback_or_zero(*addr))
		return 0;
	k.addr = *addr;
	k.bridge = p->bridge;
	if (fbr_link_local(k.addr))
		return fbr_link_owner(p, &k);
	t = fbr_dev_get(p->bridge);
	if (t && fbr_addr_eq(fbr_dev_ip(t), k.addr))
		return t->ifindex;
	t = fbr_host_port(FBR_ARG(k.addr));
	return t ? t->ifindex : 0;
}

/* Lets p have a link-local address if nobody else has it. Returns FBR_NONE, or the reason to
 * drop a packet in which p uses it.
 */
__fbr_global enum fbr_reason fbr_link_claim(const struct fbr_dev *p, const fbr_addr *addr)
{
	struct fbr_claim_key k = {};
	struct fbr_dev6 *own;
	__u32 owner, port;

	if (!p || !addr)
		return FBR_SPOOF_IP;
	k.addr = *addr;
	k.bridge = p->bridge;
	port = p->ifindex;
	owner = fbr_link_owner(p, &k);
	if (owner)
		return owner == port ? FBR_NONE : FBR_SPOOF_IP;
	own = fbr_dev6_get(port);
	if (!own)
		return FBR_SPOOF_IP;
	if (own->claims >= FBR_LINK_LOCALS)
		return FBR_QUOTA;
	__sync_fetch_and_add(&own->claims, 1);
	/* Of two ports that come at the same time, one is first. What is there otherwise was
	 * a port's that is gone.
	 */
	if (!bpf_map_update_elem(&fbr_claims, &k, &port, BPF_NOEXIST))
		return FBR_NONE;
	if (!fbr_link_owner(p, &k) && !bpf_map_update_elem(&fbr_claims, &k, &port, BPF_EXIST))
		return FBR_NONE;
	fbr_atomic_dec(&own->claims);
	return fbr_link_owner(p, &k) == port ? FBR_NONE : FBR_SPOOF_IP;
}

/* Whether p may use an address as its own: with an answer about it, or to ask for it. */
static __always_inline enum fbr_reason fbr_may_have(const struct fbr_dev *p, const fbr_addr *addr)
{
	if (fbr_link_local(*addr))
		return fbr_link_claim(p, addr);
	return !fbr_multicast(*addr) && !fbr_loopback_or_zero(*addr) && fbr_port_has(p, addr)
		       ? FBR_NONE
		       : FBR_SPOOF_IP;
}

#endif
