/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checksums over the bytes of a packet. */
#ifndef FBR_SUM_H
#define FBR_SUM_H

#include "../include/bpf/bpf_helpers.h"
#include "csum.h"

#define FBR_SUM_CHUNK  64
#define FBR_SUM_CHUNKS 1024

_Static_assert(FBR_SUM_CHUNK *FBR_SUM_CHUNKS >= 65536, "any packet");

struct fbr_summing {
	struct __sk_buff *skb;
	__u32 off;
	__u32 len;
	__s64 sum; /* -1: the packet is too short */
};

static long fbr_sum_chunk(__u64 i, struct fbr_summing *w)
{
	__be32 chunk[FBR_SUM_CHUNK / 4] = {};
	__u32 n = w->len < sizeof(chunk) ? w->len : sizeof(chunk);

	if (!n)
		return 1;
	barrier_var(n); /* else the compiler drops the bounds that the verifier needs */
	if (n < 1 || n > sizeof(chunk) || bpf_skb_load_bytes(w->skb, w->off, chunk, n)) {
		w->sum = -1;
		return 1;
	}
	w->sum = bpf_csum_diff(NULL, 0, chunk, sizeof(chunk), w->sum);
	w->off += n;
	w->len -= n;
	return 0;
}

/* Whether the checksum over len bytes of the packet, from off on, is right. seed is the sum of
 * what it covers besides.
 */
static __always_inline bool fbr_sum_holds(struct __sk_buff *skb, __u32 off, __u32 len, __u16 seed)
{
	struct fbr_summing w = { .skb = skb, .off = off, .len = len, .sum = seed };

	bpf_loop(FBR_SUM_CHUNKS, fbr_sum_chunk, &w, 0);
	return w.sum >= 0 && fbr_fold(w.sum) == 0xffff;
}

#endif
