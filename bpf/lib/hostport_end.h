/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ends connections of the host's own sockets that were led to a published port (hostport.h)
 * once it is no longer published. No packet of such a connection is translated, so the next
 * owner of the container's address would receive them. TCP is reset, UDP is disconnected,
 * and the process gets ECONNABORTED. The control plane runs this over all sockets of its
 * network namespace after the publication is gone.
 */
#ifndef FBR_HOSTPORT_END_H
#define FBR_HOSTPORT_END_H

#include "hostport.h"
#include "publish.h"
#include "told.h"

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* Whether the publication that led a socket there still exists. */
static __always_inline bool fbr_told_holds(const struct fbr_told *t, __u8 proto)
{
	struct fbr_pub *pub = fbr_pub_get(t->host, t->hport, proto);

	return pub && fbr_addr_eq(pub->ip, t->ip) && pub->port == t->port;
}

static __always_inline int fbr_end_stale(struct sock_common *sk, __u8 proto)
{
	struct fbr_sock *s;
	fbr_addr to;
	int i;

	s = sk ? bpf_sk_storage_get(&fbr_told, sk, NULL, 0) : NULL;
	if (!s)
		return 0;
	to = fbr_cg_peer(sk);
	for (i = 0; i < FBR_TOLD_MAX; i++) {
		struct fbr_told *t = &s->told[i];

		if (!fbr_addr_zero(t->ip) && fbr_addr_eq(t->ip, to) && t->port == sk->skc_dport &&
		    !fbr_told_holds(t, proto)) {
			bpf_sock_destroy(sk);
			return 0;
		}
	}
	return 0;
}

#endif
