/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports for sockets of the host, without a proxy. A socket that asks for a
 * published port is connected to the container, and told that it got what it asked for.
 * This holds for 127.0.0.0/8, ::1 and every address of the host, for TCP and UDP.
 *
 * The programs see every socket of the machine below their cgroup. They first check the
 * network namespace, and ignore all sockets but the instance's. They never refuse a
 * connection. They also ignore a socket that is bound to a loopback address or to a device:
 * its packets might not leave the loopback device, or might not reach the bridge.
 */
#ifndef FBR_HOSTPORT_H
#define FBR_HOSTPORT_H

#include "../include/bpf/bpf_endian.h"
#include "config.h"
#include "device.h"
#include "extport.h"
#include "publish.h"
#include "told.h"

/* The host's own addresses, as the control plane last saw them. Read only for sockets of
 * the host that use a published port: these programs have no route lookup.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_STATS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u32); /* unused */
} fbr_local SEC(".maps");

#define FBR_CG_ALLOW      1
#define FBR_CG_DENY       0

#define IPPROTO_MPTCP     262
#define FBR_EADDRINUSE    98
#define FBR_EADDRNOTAVAIL 99

static __always_inline bool fbr_cg_ours(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == cfg_netns;
}

static __always_inline __u8 fbr_cg_proto(const struct bpf_sock_addr *ctx)
{
	__u32 proto = ctx->protocol;

	return proto == IPPROTO_MPTCP                         ? IPPROTO_TCP
	       : proto == IPPROTO_TCP || proto == IPPROTO_UDP ? proto
							      : 0;
}

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

/* Whether a socket of the host listens on the port after all; with six, an IPv6 socket. */
static __always_inline bool fbr_cg_listens(struct bpf_sock_addr *ctx, __be32 addr, __be16 port,
					   __u8 proto, bool six)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size = six ? sizeof(t.ipv6) : sizeof(t.ipv4);

	if (six) {
		t.ipv6.daddr[3] = bpf_htonl(1);
		t.ipv6.dport = port;
	} else {
		t.ipv4.daddr = addr;
		t.ipv4.dport = port;
	}
	sk = proto == IPPROTO_TCP ? bpf_sk_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0)
				  : bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The publication that a socket of the host means by addr:port, or NULL. */
static __always_inline struct fbr_pub *fbr_cg_pub(struct bpf_sock_addr *ctx, __be32 addr, bool six)
{
	__u8 proto = fbr_cg_proto(ctx);
	__be16 port = ctx->user_port;
	struct bpf_sock *sk = ctx->sk;
	struct fbr_pub *pub;

	if (!proto || !addr || (sk && sk->bound_dev_if))
		return NULL;
	pub = fbr_pub_get(addr, port, proto);
	if (!pub || (!pub->held && fbr_cg_listens(ctx, addr, port, proto, six)))
		return NULL;
	return fbr_loopback_or_zero(addr) || bpf_map_lookup_elem(&fbr_local, &addr) ? pub : NULL;
}

/* Whether the socket may go to the container. A socket that asks for an address of the host
 * other than loopback must come from that address, as it would have without us.
 */
static __always_inline bool fbr_cg_source(struct bpf_sock_addr *ctx, __be32 addr)
{
	struct bpf_sock *sk = ctx->sk;
	__be32 bound = sk ? sk->src_ip4 : 0;

	if (bound)
		return !fbr_loopback_or_zero(bound);
	if (fbr_loopback_or_zero(addr))
		return true;
	/* If the address cannot be bound, the host no longer has it. A socket that is only
	 * bound to a port keeps the address that the kernel chooses.
	 */
	if (ctx->family == AF_INET6) {
		struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
					    .sin6_addr = { 0, 0, bpf_htonl(0xffff), addr } };

		return bpf_bind(ctx, (void *)&in6, sizeof(in6)) != -FBR_EADDRNOTAVAIL;
	} else {
		struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = addr };

		return bpf_bind(ctx, (void *)&in, sizeof(in)) != -FBR_EADDRNOTAVAIL;
	}
}

static __always_inline int fbr_cg_connect4(struct bpf_sock_addr *ctx)
{
	__be32 addr = ctx->user_ip4;
	struct fbr_pub *pub;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	pub = fbr_cg_pub(ctx, addr, false);
	if (!pub || !fbr_cg_source(ctx, addr))
		return FBR_CG_ALLOW;
	fbr_cg_note(ctx, pub, addr, false);
	ctx->user_ip4 = pub->ip;
	ctx->user_port = pub->port;
	return FBR_CG_ALLOW;
}

static __always_inline void fbr_cg_set6(struct bpf_sock_addr *ctx, __be32 ip4, __be16 port)
{
	ctx->user_ip6[0] = 0;
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] = bpf_htonl(0xffff);
	ctx->user_ip6[3] = ip4;
	ctx->user_port = port;
}

static __always_inline int fbr_cg_connect6(struct bpf_sock_addr *ctx)
{
	struct fbr_pub *pub;
	__be32 addr;
	bool six;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	addr = fbr_cg_ip4(ctx, &six);
	pub = fbr_cg_pub(ctx, addr, six);
	if (!pub || !fbr_cg_source(ctx, addr))
		return FBR_CG_ALLOW;
	fbr_cg_note(ctx, pub, addr, six);
	fbr_cg_set6(ctx, pub->ip, pub->port);
	return FBR_CG_ALLOW;
}

/* Unconnected UDP. A datagram to a v4-mapped address comes here too. The kernel does not
 * let one change from ::1 to IPv4.
 */
static __always_inline int fbr_cg_sendmsg4(struct bpf_sock_addr *ctx)
{
	__be32 addr = ctx->user_ip4;
	struct bpf_sock *sk = ctx->sk;
	struct fbr_pub *pub;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	pub = fbr_cg_pub(ctx, addr, false);
	if (!pub || !sk || (sk->src_ip4 && fbr_loopback_or_zero(sk->src_ip4)))
		return FBR_CG_ALLOW;
	if (!sk->src_ip4 && !ctx->msg_src_ip4 && !fbr_loopback_or_zero(addr))
		ctx->msg_src_ip4 = addr;
	fbr_cg_note(ctx, pub, addr, false);
	ctx->user_ip4 = pub->ip;
	ctx->user_port = pub->port;
	return FBR_CG_ALLOW;
}

/* recvmsg and getpeername show the address that was asked for. */
static __always_inline int fbr_cg_tell4(struct bpf_sock_addr *ctx)
{
	struct fbr_told *t;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	t = fbr_cg_told(ctx, ctx->user_ip4);
	if (t) {
		ctx->user_ip4 = t->host;
		ctx->user_port = t->hport;
	}
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

struct fbr_cg_walk {
	__be16 port;
	__u8 proto;
	bool found;
};

static long fbr_cg_published_at(void *map, const __be32 *addr, __u32 *unused, struct fbr_cg_walk *w)
{
	struct fbr_bind_key k = { .ip = *addr, .port = w->port, .proto = w->proto };
	struct fbr_pub *pub = bpf_map_lookup_elem(&fbr_pub, &k);

	w->found = pub && !pub->held;
	return w->found;
}

/* Whether a socket may bind addr (0: any address): nobody may bind a published port. An
 * engine that holds the port itself binds it after it has asked for the publication.
 */
static __always_inline int fbr_cg_bind(struct bpf_sock_addr *ctx, __be32 addr)
{
	struct fbr_cg_walk w = { .port = ctx->user_port, .proto = fbr_cg_proto(ctx) };
	struct fbr_pub *pub;

	if (!w.port || !w.proto)
		return FBR_CG_ALLOW;
	pub = fbr_pub_get(addr, w.port, w.proto);
	w.found = pub && !pub->held;
	if (!w.found && !addr)
		bpf_for_each_map_elem(&fbr_local, fbr_cg_published_at, &w, 0);
	if (!w.found)
		return FBR_CG_ALLOW;
	bpf_set_retval(-FBR_EADDRINUSE);
	return FBR_CG_DENY;
}

static __always_inline int fbr_cg_bind4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_ours(ctx) ? fbr_cg_bind(ctx, ctx->user_ip4) : FBR_CG_ALLOW;
}

/* An IPv6 socket on any address takes IPv4 too unless it opts out, which is not visible here. */
static __always_inline int fbr_cg_bind6(struct bpf_sock_addr *ctx)
{
	bool six;

	return fbr_cg_ours(ctx) ? fbr_cg_bind(ctx, fbr_cg_ip4(ctx, &six)) : FBR_CG_ALLOW;
}

#endif
