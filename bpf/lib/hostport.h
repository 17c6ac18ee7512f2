/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Published ports for sockets of the host, without a proxy. A socket that asks for a
 * published port is connected to the container, and told that it got what it asked for.
 * This holds for loopback addresses and every address of the host, for TCP and UDP.
 *
 * The programs see every socket of the machine below their cgroup. They first check the
 * network namespace, and ignore all sockets but the instance's. They never refuse a
 * connection. They also ignore a socket that is bound to a loopback address or to a device:
 * its packets might not leave the loopback device, or might not reach the bridge.
 *
 * On a hook of IPv6 sockets, IPv6's program stands before IPv4's (hostmapped.h). What it has
 * led to a container's IPv6 address, IPv4's leaves alone.
 */
#ifndef FBR_HOSTPORT_H
#define FBR_HOSTPORT_H

#include "../include/bpf/bpf_endian.h"
#include "af.h"
#include FBR_AF_HOSTPORT
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
	__type(key, fbr_addr);
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

/* Whether a socket of the host listens after all where t leads, a tuple of this size. */
static __always_inline bool fbr_cg_listens(struct bpf_sock_addr *ctx, struct bpf_sock_tuple *t,
					   __u32 size, __u8 proto)
{
	struct bpf_sock *sk = proto == IPPROTO_TCP
				      ? bpf_sk_lookup_tcp(ctx, t, size, BPF_F_CURRENT_NETNS, 0)
				      : bpf_sk_lookup_udp(ctx, t, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The publication that a socket of the host means by addr and its port, or NULL. listener is
 * where a socket would listen that goes first, a tuple of this size.
 */
static __always_inline struct fbr_pub *fbr_cg_pub_at(struct bpf_sock_addr *ctx, fbr_addr addr,
						     struct bpf_sock_tuple *listener, __u32 size)
{
	__u8 proto = fbr_cg_proto(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct fbr_pub *pub;

	if (!proto || fbr_addr_zero(addr) || (sk && sk->bound_dev_if))
		return NULL;
	pub = fbr_pub_get(addr, ctx->user_port, proto);
	if (!pub || (!pub->held && fbr_cg_listens(ctx, listener, size, proto)))
		return NULL;
	return fbr_loopback_or_zero(addr) || bpf_map_lookup_elem(&fbr_local, &addr) ? pub : NULL;
}

static __always_inline struct fbr_pub *fbr_cg_pub(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	struct bpf_sock_tuple t = {};

	fbr_addr_put(t.FBR_TUPLE.daddr, addr);
	t.FBR_TUPLE.dport = ctx->user_port;
	return fbr_cg_pub_at(ctx, addr, &t, FBR_TUPLE_LEN);
}

/* Whether the socket may go to the container. A socket that asks for an address of the host
 * other than loopback must come from that address, as it would have without us.
 */
static __always_inline bool fbr_cg_source(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	struct bpf_sock *sk = ctx->sk;
	fbr_addr bound = sk ? fbr_cg_src(sk) : FBR_NO_ADDR;

	if (!fbr_addr_zero(bound))
		return !fbr_loopback_or_zero(bound);
	if (fbr_loopback_or_zero(addr))
		return true;
	/* If the address cannot be bound, the host no longer has it. A socket that is only
	 * bound to a port keeps the address that the kernel chooses.
	 */
	return fbr_cg_bind_to(ctx, addr) != -FBR_EADDRNOTAVAIL;
}

static __always_inline int fbr_cg_connect(struct bpf_sock_addr *ctx)
{
	struct fbr_pub *pub;
	fbr_addr addr;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	addr = fbr_cg_user(ctx);
	pub = fbr_cg_pub(ctx, addr);
	if (!pub || !fbr_cg_source(ctx, addr))
		return FBR_CG_ALLOW;
	fbr_cg_note(ctx, pub, addr, false);
	fbr_cg_set(ctx, pub->ip, pub->port);
	return FBR_CG_ALLOW;
}

/* Unconnected UDP. A datagram to a v4-mapped address comes to IPv4's program. */
static __always_inline int fbr_cg_sendmsg(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	fbr_addr addr, bound;
	struct fbr_pub *pub;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	addr = fbr_cg_user(ctx);
	pub = fbr_cg_pub(ctx, addr);
	if (!pub || !sk)
		return FBR_CG_ALLOW;
	bound = fbr_cg_src(sk);
	if (!fbr_addr_zero(bound) && fbr_loopback_or_zero(bound))
		return FBR_CG_ALLOW;
	if (fbr_addr_zero(bound) && fbr_addr_zero(FBR_CG_MSG_SRC(ctx)) &&
	    !fbr_loopback_or_zero(addr))
		FBR_CG_SET_MSG_SRC(ctx, addr);
	fbr_cg_note(ctx, pub, addr, false);
	fbr_cg_set(ctx, pub->ip, pub->port);
	return FBR_CG_ALLOW;
}

/* recvmsg and getpeername show the address that was asked for. */
static __always_inline int fbr_cg_tell(struct bpf_sock_addr *ctx)
{
	struct fbr_told *t;

	if (!fbr_cg_ours(ctx))
		return FBR_CG_ALLOW;
	t = fbr_cg_told(ctx, fbr_cg_user(ctx));
	if (t)
		fbr_cg_set(ctx, t->host, t->hport);
	return FBR_CG_ALLOW;
}

struct fbr_cg_walk {
	__be16 port;
	__u8 proto;
	bool found;
};

static long fbr_cg_published_at(void *map, const fbr_addr *addr, __u32 *unused,
				struct fbr_cg_walk *w)
{
	struct fbr_bind_key k = { .ip = *addr, .port = w->port, .proto = w->proto };
	struct fbr_pub *pub = bpf_map_lookup_elem(&fbr_pub, &k);

	w->found = pub && !pub->held;
	return w->found;
}

/* Whether a socket may bind addr (0: any address): nobody may bind a published port. An
 * engine that holds the port itself binds it after it has asked for the publication.
 */
static __always_inline int fbr_cg_bind_at(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	struct fbr_cg_walk w = { .port = ctx->user_port, .proto = fbr_cg_proto(ctx) };
	struct fbr_pub *pub;

	/* No publication leads what comes to a group, or to a link's own address by IPv6. */
	if (!w.port || !w.proto || fbr_multicast(addr) || fbr_link_local(addr))
		return FBR_CG_ALLOW;
	pub = fbr_pub_get(addr, w.port, w.proto);
	w.found = pub && !pub->held;
	if (!w.found && fbr_addr_zero(addr))
		bpf_for_each_map_elem(&fbr_local, fbr_cg_published_at, &w, 0);
	if (!w.found)
		return FBR_CG_ALLOW;
	bpf_set_retval(-FBR_EADDRINUSE);
	return FBR_CG_DENY;
}

static __always_inline int fbr_cg_bind(struct bpf_sock_addr *ctx)
{
	if (!fbr_cg_ours(ctx) || fbr_cg_mapped(ctx))
		return FBR_CG_ALLOW;
	return fbr_cg_bind_at(ctx, fbr_cg_user(ctx));
}

#endif
