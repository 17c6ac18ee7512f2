// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Entry points for sockets of the host. Part of tc.bpf.c. */
#include "lib/hostport.h"
#include "lib/hostport_end.h"
#if FBR_AF == 4
#include "lib/hostmapped.h"
#else
#define fbr_cg_connect6 fbr_cg_connect
#define fbr_cg_tell6    fbr_cg_tell
#define fbr_cg_bind6    fbr_cg_bind
#endif

/* Sockets of the host that use published ports. Attached to a cgroup while there are
 * publications.
 */
#if FBR_AF == 4
SEC("cgroup/connect4")
int fbr_connect4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_connect(ctx);
}

SEC("cgroup/sendmsg4")
int fbr_sendmsg4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_sendmsg(ctx);
}

SEC("cgroup/recvmsg4")
int fbr_recvmsg4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell(ctx);
}

SEC("cgroup/getpeername4")
int fbr_getpeername4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell(ctx);
}

SEC("cgroup/bind4")
int fbr_bind4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_bind(ctx);
}
#else
/* The kernel lets no datagram to ::1 change over to IPv4, whose object lacks this one. */
SEC("cgroup/sendmsg6")
int fbr_sendmsg6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_sendmsg(ctx);
}
#endif

SEC("cgroup/connect6")
int fbr_connect6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_connect6(ctx);
}

SEC("cgroup/recvmsg6")
int fbr_recvmsg6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell6(ctx);
}

SEC("cgroup/getpeername6")
int fbr_getpeername6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell6(ctx);
}

SEC("cgroup/bind6")
int fbr_bind6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_bind6(ctx);
}

/* Iterators over all sockets of the host, run after a publication is removed. */
SEC("iter/tcp")
int fbr_end_tcp(struct bpf_iter__tcp *ctx)
{
	return fbr_end_stale(ctx->sk_common, IPPROTO_TCP);
}

SEC("iter/udp")
int fbr_end_udp(struct bpf_iter__udp *ctx)
{
	return fbr_end_stale((struct sock_common *)ctx->udp_sk, IPPROTO_UDP);
}
