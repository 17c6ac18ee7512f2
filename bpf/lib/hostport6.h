/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets of the host and published ports (hostport.h): what an IPv6 address is to them. A
 * v4-mapped one is IPv4's affair (hostmapped.h), and none here.
 */
#ifndef FBR_HOSTPORT6_H
#define FBR_HOSTPORT6_H

#include "../include/bpf/bpf_endian.h"
#include "af.h"

static __always_inline bool fbr_cg_mapped(const struct bpf_sock_addr *ctx)
{
	return !(ctx->user_ip6[0] | ctx->user_ip6[1]) && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline fbr_addr fbr_cg_user(const struct bpf_sock_addr *ctx)
{
	fbr_addr a = { { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };

	return fbr_cg_mapped(ctx) ? FBR_NO_ADDR : a;
}

static __always_inline void fbr_cg_set(struct bpf_sock_addr *ctx, fbr_addr addr, __be16 port)
{
	ctx->user_ip6[0] = addr.word[0];
	ctx->user_ip6[1] = addr.word[1];
	ctx->user_ip6[2] = addr.word[2];
	ctx->user_ip6[3] = addr.word[3];
	ctx->user_port = port;
}

static __always_inline fbr_addr fbr_cg_src(const struct bpf_sock *sk)
{
	return (fbr_addr){ { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] } };
}

#define FBR_CG_MSG_SRC(ctx)                                                                 \
	((fbr_addr){ { (ctx)->msg_src_ip6[0], (ctx)->msg_src_ip6[1], (ctx)->msg_src_ip6[2], \
		       (ctx)->msg_src_ip6[3] } })
#define FBR_CG_SET_MSG_SRC(ctx, addr)                   \
	do {                                            \
		(ctx)->msg_src_ip6[0] = (addr).word[0]; \
		(ctx)->msg_src_ip6[1] = (addr).word[1]; \
		(ctx)->msg_src_ip6[2] = (addr).word[2]; \
		(ctx)->msg_src_ip6[3] = (addr).word[3]; \
	} while (0)

static __always_inline int fbr_cg_bind_to(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6 };

	__builtin_memcpy(in6.sin6_addr, &addr, sizeof(addr));
	return bpf_bind(ctx, (void *)&in6, sizeof(in6));
}

static __always_inline fbr_addr fbr_cg_peer(const struct sock_common *sk)
{
	return sk->skc_v6_daddr;
}

#endif
