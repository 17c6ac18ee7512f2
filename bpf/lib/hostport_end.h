/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ends connections of the host's own sockets that were led to a published port
 * (hostport.h) which is published no more: from the socket on, no packet of theirs
 * is translated, so whoever gets the container's address next would be sent them.
 * TCP is reset, UDP disconnected, and the process told ECONNABORTED. Run by the
 * control plane through all sockets of its network namespace, once the publication
 * has gone.
 */
#ifndef FBR_HOSTPORT_END_H
#define FBR_HOSTPORT_END_H

#include "publish.h"
#include "told.h"

extern int bpf_sock_destroy(struct sock_common *sk) __ksym;

/* Whether what led a socket there is still published. */
static __always_inline bool fbr_told_holds(const struct fbr_told *t, __u8 proto)
{
	struct fbr_pub *pub = fbr_pub_get(t->host, t->hport, proto);

	return pub && pub->ip == t->ip && pub->port == t->port;
}

static __always_inline int fbr_end_stale(struct sock_common *sk, __u8 proto)
{
	struct fbr_sock *s;
	int i;

	s = sk ? bpf_sk_storage_get(&fbr_told, sk, NULL, 0) : NULL;
	if (!s)
		return 0;
	for (i = 0; i < FBR_TOLD_MAX; i++) {
		struct fbr_told *t = &s->told[i];

		if (t->ip && t->ip == sk->skc_daddr && t->port == sk->skc_dport &&
		    !fbr_told_holds(t, proto)) {
			bpf_sock_destroy(sk);
			return 0;
		}
	}
	return 0;
}

#endif
