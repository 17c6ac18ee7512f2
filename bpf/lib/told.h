/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What sockets of the host were told: where each socket was led, and what it had asked for. */
#ifndef FBR_TOLD_H
#define FBR_TOLD_H

#include "publish.h"

#define FBR_TOLD_MAX 4 /* publications that one socket of the host uses at once */

/* A socket of the host was led to ip:port when it asked for host:hport. */
struct fbr_told {
	fbr_addr ip;
	fbr_addr host;
	__be16 port;
	__be16 hport;
	__u8 six; /* it asked for ::1, and was led by IPv4 */
	__u8 pad[3];
};

/* fbr_told[socket]: the latest ones, written in turn */
struct fbr_sock {
	__u32 turn;
	struct fbr_told told[FBR_TOLD_MAX];
};

/* Where sockets of the host were led. An entry lives as long as its socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct fbr_sock);
} fbr_told SEC(".maps");

/* Records what the socket asked for. */
static __always_inline void fbr_cg_note(struct bpf_sock_addr *ctx, const struct fbr_pub *pub,
					fbr_addr addr, bool six)
{
	struct fbr_told told = {
		.ip = pub->ip, .port = pub->port, .host = addr, .hport = ctx->user_port, .six = six
	};
	struct bpf_sock *sk = ctx->sk;
	struct fbr_sock *s;
	int i;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&fbr_told, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return;
	for (i = 0; i < FBR_TOLD_MAX; i++) {
		if (fbr_addr_eq(s->told[i].ip, told.ip) && s->told[i].port == told.port) {
			s->told[i] = told;
			return;
		}
	}
	s->told[s->turn++ % FBR_TOLD_MAX] = told;
}

/* What the socket asked for when it was led to addr:port, or NULL. */
static __always_inline struct fbr_told *fbr_cg_told(struct bpf_sock_addr *ctx, fbr_addr addr)
{
	struct bpf_sock *sk = ctx->sk;
	__be16 port = ctx->user_port;
	struct fbr_sock *s;
	int i;

	s = sk && !fbr_addr_zero(addr) ? bpf_sk_storage_get(&fbr_told, sk, NULL, 0) : NULL;
	if (!s)
		return NULL;
	for (i = 0; i < FBR_TOLD_MAX; i++)
		if (fbr_addr_eq(s->told[i].ip, addr) && s->told[i].port == port)
			return &s->told[i];
	return NULL;
}

#endif
