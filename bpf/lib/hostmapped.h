/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 sockets of the host that reach IPv4 addresses (hostport.h): by a v4-mapped address, and
 * by ::1, which stands for 127.0.0.1 where no port of IPv6 is published.
 */
#ifndef FBR_HOSTMAPPED_H
#define FBR_HOSTMAPPED_H

#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "hostport.h"
#include "kctx.h"

/* The IPv4 address that an IPv6 address stands for: v4-mapped, or ::1 (six). 0: none. */
static __always_inline __be32 fbr_cg_ip4(const struct bpf_sock_addr *ctx, bool *six)
{
	__be32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2],
	       d = ctx->user_ip6[3];

	*six = false;
	if (a || b)
		return 0;
	if (c == bpf_htonl(0xffff))
		return d;
	*six = !c && d == bpf_htonl(1);
	return *six ? bpf_htonl(0x7f000001) : 0;
}

static __always_inline void fbr_cg_set6(struct bpf_sock_addr *ctx, __be32 ip4, __be16 port)
{
	ctx->user_ip6[0] = 0;
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] = bpf_htonl(0xffff);
	ctx->user_ip6[3] = ip4;
	ctx->user_port = port;
}

/* Whether the socket asks for ::. */
static __always_inline bool fbr_cg_any6(const struct bpf_sock_addr *ctx)
{
	return !(ctx->user_ip6[0] | ctx->user_ip6[1] | ctx->user_ip6[2] | ctx->user_ip6[3]);
}

static __always_inline int fbr_cg_connect6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_tuple t = {};
	struct fbr_pub *pub;
	__be32 addr;
	bool six;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	addr = fbr_cg_ip4(ctx, &six);
	if (six) {
		t.ipv6.daddr[3] = bpf_htonl(1);
		t.ipv6.dport = ctx->user_port;
		pub = fbr_cg_pub_at(ctx, addr, &t, sizeof(t.ipv6));
	} else {
		pub = fbr_cg_pub(ctx, addr);
	}
	if (!pub || !fbr_cg_source(ctx, addr))
		return FBR_CG_ALLOW;
	fbr_cg_note(ctx, pub, addr, six);
	fbr_cg_set6(ctx, pub->ip, pub->port);
	return FBR_CG_ALLOW;
}

static __always_inline int fbr_cg_tell6(struct bpf_sock_addr *ctx)
{
	struct fbr_told *t;
	bool six;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	t = fbr_cg_told(ctx, fbr_cg_ip4(ctx, &six));
	if (!t)
		return FBR_CG_ALLOW;
	fbr_cg_set6(ctx, t->host, t->hport);
	if (t->six) {
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = bpf_htonl(1);
	}
	return FBR_CG_ALLOW;
}

/* Whether the socket takes no packets of IPv4. */
static __always_inline bool fbr_cg_ipv6only(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);

	return BPF_CORE_READ_BITFIELD_PROBED(k->sk, __sk_common.skc_ipv6only);
}

static __always_inline int fbr_cg_bind6(struct bpf_sock_addr *ctx)
{
	__be32 addr;
	bool six;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	addr = fbr_cg_ip4(ctx, &six);
	if (!addr && (!fbr_cg_any6(ctx) || fbr_cg_ipv6only(ctx)))
		return FBR_CG_ALLOW;
	return fbr_cg_bind_at(ctx, addr);
}

#endif
