/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who else on this host uses a port: a socket or, according to connection tracking, a
 * neighbour NAT.
 */
#ifndef FBR_SOCKET_H
#define FBR_SOCKET_H

#include "../include/bpf/bpf_endian.h"
#include "ct.h"
#include "nat.h"
#include "parse.h"
#include "scratch.h"

/* The socket of the host that would receive packets from t's source to its destination. The
 * caller releases it. NULL if there is none, or if the protocol is neither TCP nor UDP.
 */
static __always_inline struct bpf_sock *fbr_socket_find(struct __sk_buff *skb, __u8 proto,
							struct bpf_sock_tuple *t)
{
	if (proto == IPPROTO_TCP)
		return bpf_skc_lookup_tcp(skb, t, FBR_TUPLE_LEN, BPF_F_CURRENT_NETNS, 0);
	if (proto == IPPROTO_UDP)
		return bpf_sk_lookup_udp(skb, t, FBR_TUPLE_LEN, BPF_F_CURRENT_NETNS, 0);
	return NULL;
}

static __always_inline bool fbr_socket_exists(struct __sk_buff *skb, __u8 proto,
					      struct bpf_sock_tuple *t)
{
	struct bpf_sock *sk = fbr_socket_find(skb, proto, t);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Whether a socket of the host would receive a packet that comes in as k. */
__fbr_global bool fbr_host_receives(struct __sk_buff *skb, const struct fbr_flow_key *k)
{
	struct bpf_sock_tuple t;

	if (!k)
		return false;
	fbr_ct_tuple(&t, k);
	return fbr_socket_exists(skb, k->proto, &t);
}

/* Whether nobody else on this host uses ext:port towards the remote of fwd. */
__fbr_global bool fbr_port_clear(struct __sk_buff *skb, struct fbr_flow_key *fwd, fbr_addr_arg ext,
				 __u32 port)
{
	if (!fwd || !FBR_GIVEN(ext))
		return false;

	/* One tuple for both lookups: this is the end of the longest call chain, whose
	 * stacks together must not exceed 512 bytes.
	 */
	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = fwd->proto };
	FBR_SCRATCH(bpf_sock_tuple, tuple);
	struct fbr_flow_key in;

	if (!tuple)
		return false;
	fbr_reverse_key(&in, fwd, FBR_ADDR(ext), bpf_htons(port));
	fbr_ct_tuple(tuple, &in);
	return !fbr_socket_exists(skb, fwd->proto, tuple) && !fbr_ct_exists(skb, tuple, &o);
}

/* Whether a socket of the host is connected to exactly this remote (UDP), or a neighbour
 * NAT's client has sent to it from this port. They were there before the publication, so
 * the packets are theirs.
 */
__fbr_global bool fbr_udp_awaited(struct __sk_buff *skb, const struct fbr_flow_key *k)
{
	struct bpf_ct_opts___12 o = { .netns_id = -1, .l4proto = IPPROTO_UDP };
	struct bpf_sock_tuple t;
	struct bpf_sock *sk;
	bool connected;

	if (!k || k->proto != IPPROTO_UDP)
		return false;
	fbr_ct_tuple(&t, k);
	sk = fbr_socket_find(skb, IPPROTO_UDP, &t);
	if (sk) {
		connected = sk->dst_port;
		bpf_sk_release(sk);
		if (connected)
			return true;
	}
	return fbr_ct_exists(skb, &t, &o) && o.dir == FBR_CT_REPLY;
}

#endif
