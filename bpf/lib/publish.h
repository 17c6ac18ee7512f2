/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports: a port of the host that leads to a container's.
 *
 * A publication is looked up only by packets that belong to no flow. The first
 * packet of a client makes an ordinary session whose external port is the
 * host's, so that everything after it (lease, fast path, expiry, ICMP errors)
 * is as for any other flow. The client's address is kept. Such a session owns no
 * port of the NAT range.
 */
#ifndef FBR_PUBLISH_H
#define FBR_PUBLISH_H

#include "../include/bpf/bpf_helpers.h"
#include "ct.h"
#include "local.h"
#include "maps.h"
#include "nport.h"
#include "parse.h"

static __always_inline bool fbr_loopback_or_zero(__be32 a)
{
	return (a & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) ||
	       (a & bpf_htonl(0xff000000)) == 0;
}

/* Whether a socket of the host is connected to exactly this remote (UDP), or a
 * neighbour NAT's client has written to it from this port: they were there before
 * the publication, and the answers are theirs.
 */
__fbr_global bool fbr_udp_awaited(struct __sk_buff *skb, const struct fbr_flow_key *k)
{
	if (!k || k->proto != IPPROTO_UDP)
		return false;

	struct bpf_sock_tuple t = {
		.ipv4 = { .saddr = k->saddr,
			  .daddr = k->daddr,
			  .sport = k->sport,
			  .dport = k->dport },
	};
	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = IPPROTO_UDP };
	struct bpf_sock *sk;
	bool connected;

	sk = bpf_sk_lookup_udp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (sk) {
		connected = sk->dst_port;
		bpf_sk_release(sk);
		if (connected)
			return true;
	}
	return fbr_ct_exists(skb, &t, &o) && o.dir == FBR_CT_REPLY;
}

/* The publication of a port of the host, of this address or of any, or NULL. */
static __always_inline struct fbr_pub *fbr_pub_get(__be32 addr, __be16 port, __u8 proto)
{
	struct fbr_bind_key k = { .ip = addr, .port = port, .proto = proto };
	struct fbr_pub *pub = bpf_map_lookup_elem(&fbr_pub, &k);

	if (!pub) {
		k.ip = 0;
		pub = bpf_map_lookup_elem(&fbr_pub, &k);
	}
	return pub && fbr_dev_get(pub->pif) ? pub : NULL;
}

/* Whether a publication is for a client with this address of its own. */
static __always_inline bool fbr_pub_allows(const struct fbr_pub *pub, __be32 client)
{
	return (client & pub->allow_mask) == pub->allow;
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
	if (!pub || !fbr_pub_allows(pub, k->saddr) || fbr_udp_awaited(skb, k) ||
	    !fbr_is_local(skb, u, k->daddr))
		return NULL;
	return pub;
}

#endif
