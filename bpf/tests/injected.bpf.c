// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The programs of tc.bpf.c with a clock and random numbers that a test controls, and a
 * sweep that runs when the test says so. Never part of a release.
 */
#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

struct fbr_injected {
	__u64 now; /* jiffies */
	__u64 random;
};

/* The test writes this through mmap. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct fbr_injected);
} fbr_injected SEC(".maps");

static const __u32 fbr_injected_key; /* not on the stack: the programs need all of that */

static __always_inline __u64 fbr_now(void)
{
	struct fbr_injected *i = bpf_map_lookup_elem(&fbr_injected, &fbr_injected_key);

	return i ? i->now : 0;
}

/* The upper half of a linear congruential generator (Knuth, MMIX). */
static __always_inline __u32 fbr_random(void)
{
	struct fbr_injected *i = bpf_map_lookup_elem(&fbr_injected, &fbr_injected_key);

	if (!i)
		return 0;
	i->random = i->random * 6364136223846793005ULL + 1442695040888963407ULL;
	return i->random >> 32;
}

#define fbr_timer_start(timer, ns) ((void)(timer))
#define FBR_INJECTED

#include "../tc.bpf.c"

SEC("tc")
int fbr_injected_sweep(struct __sk_buff *skb)
{
	struct fbr_state *st = fbr_state_get();

	if (st)
		fbr_sweep_pass(st);
	return 0;
}
