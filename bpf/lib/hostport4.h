/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets of the host and published ports (hostport.h): what an IPv4 address is to them. */
#ifndef FBR_HOSTPORT4_H
#define FBR_HOSTPORT4_H

#include "../include/bpf/bpf_endian.h"
#include "af.h"

/* Whether the address that a socket asks for is of the other family. */
#define fbr_cg_mapped(ctx) false

/* The address that a socket asks for, or is told of. */
static __always_inline fbr_addr fbr_cg_user(const struct bpf_sock_addr *ctx)
{
	return ctx->user_ip4;
}

static __always_inline void fbr_cg_set(struct bpf_sock_addr *ctx, fbr_addr addr, __be16 port)
{
	ctx->user_ip4 = addr;
	ctx->user_port = port;
}

/* The source that a socket is bound to, or a datagram goes out with. */
static __always_inline fbr_addr fbr_cg_src(const struct bpf_sock *sk)
{
	return sk->src_ip4;
}

#define FBR_CG_MSG_SRC(ctx)           ((ctx)->msg_src_ip4)
#define FBR_CG_SET_MSG_SRC(ctx, addr) ((ctx)->msg_src_ip4 = (addr))

/* Binds the socket to an address. An IPv6 socket that goes to an IPv4 address is bound to a
 * v4-mapped one.
 */
static __always_inline int fbr_cg_bind_to(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	if (ctx->family == AF_INET6) {
		struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
					    .sin6_addr = { 0, 0, bpf_htonl(0xffff), addr } };

		return bpf_bind(ctx, (void *)&in6, sizeof(in6));
	} else {
		struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = addr };

		return bpf_bind(ctx, (void *)&in, sizeof(in));
	}
}

/* Where a socket is connected to. */
static __always_inline fbr_addr fbr_cg_peer(const struct sock_common *sk)
{
	return sk->skc_daddr;
}

#endif
