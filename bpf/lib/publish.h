/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports: a port of the host that leads to a container's port.
 *
 * Only packets that belong to no flow look a publication up. A client's first packet
 * creates an ordinary session whose external port is the host's port. So everything later
 * (lease, fast path, expiry, ICMP errors) is as for any other flow. The client's address is
 * kept. Such a session owns no port of the NAT range.
 */
#ifndef FBR_PUBLISH_H
#define FBR_PUBLISH_H

#include "device.h"
#include "extport.h"
#include "local.h"
#include "nat.h"
#include "socket.h"

#define FBR_PUBS_MAX 262144 /* published ports */

/* fbr_pub[host address (0: any), port, protocol]: where a port of the host leads. In a network
 * with FBR_NET_OWN, the address and the port are the container's.
 */
struct fbr_pub {
	fbr_addr ip; /* the container's */
	__be16 port;
	__u8 held; /* the engine keeps a socket on the host's port: sockets there do not count */
	__u8 pad;
	__u32 pif;
	fbr_addr allow; /* clients: address & mask */
	fbr_addr allow_mask;
	__u32 missed_at; /* jiffies, low half: the kernel has not translated (dnat.h); 0: never */
};

/* The published ports, by the host's address and port. fbr_pub_of gives the host's address
 * (0: any) and port by the container's. Allocated on demand: there may be none, a few, or
 * tens of thousands.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_PUBS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_bind_key);
	__type(value, struct fbr_pub);
} fbr_pub SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_PUBS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_bind_key);
	__type(value, struct fbr_bind_key);
} fbr_pub_of SEC(".maps");

/* The publication of a host's port, for this address or for any, or NULL. */
static __always_inline struct fbr_pub *fbr_pub_get(fbr_addr addr, __be16 port, __u8 proto)
{
	struct fbr_bind_key k = { .ip = addr, .port = port, .proto = proto };
	struct fbr_pub *pub = bpf_map_lookup_elem(&fbr_pub, &k);

	if (!pub) {
		k.ip = FBR_NO_ADDR;
		pub = bpf_map_lookup_elem(&fbr_pub, &k);
	}
	return pub && fbr_dev_get(pub->pif) ? pub : NULL;
}

/* Whether a publication admits a client with this address. */
static __always_inline bool fbr_pub_allows(const struct fbr_pub *pub, fbr_addr client)
{
	return fbr_addr_eq(fbr_addr_and(client, pub->allow_mask), pub->allow);
}

/* The publication that a packet from outside with the key k is for, or NULL. */
static __always_inline struct fbr_pub *fbr_pub_find(struct __sk_buff *skb, const struct fbr_dev *u,
						    const struct fbr_flow_key *k)
{
	struct fbr_pub *pub;

	if (skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST ||
	    fbr_loopback_or_zero(k->daddr)) /* never from outside */
		return NULL;
	pub = fbr_pub_get(k->daddr, k->dport, k->proto);
	if (!pub || !fbr_pub_allows(pub, k->saddr))
		return NULL;
	if (!fbr_addr_eq(pub->ip, k->daddr) &&
	    (fbr_udp_awaited(skb, k) ||
	     !fbr_is_local(skb, u, FBR_ASK(u->ifindex, fbr_port_bridge(pub->pif)),
			   FBR_ARG(k->daddr))))
		return NULL;
	return pub;
}

#endif
