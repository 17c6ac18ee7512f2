/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One's complement sums. */
#ifndef FBR_BENCH_FOLD_H
#define FBR_BENCH_FOLD_H

#include "../include/kernel.h"

/* Folds a sum below 2^32 to 16 bits. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#endif
