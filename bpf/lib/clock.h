/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What does not come from a packet: the time, random numbers, and the timer of the sweep.
 * bpf/tests/injected.bpf.c defines its own versions before it includes the programs, so
 * that a test controls the time.
 */
#ifndef FBR_CLOCK_H
#define FBR_CLOCK_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

#ifndef FBR_INJECTED

/* jiffies64 */
#define fbr_now()                  bpf_jiffies64()
/* 32 random bits */
#define fbr_random()               bpf_get_prandom_u32()
#define fbr_timer_start(timer, ns) bpf_timer_start(timer, ns, 0)

#endif

#endif
