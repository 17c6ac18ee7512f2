/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Room for what is too big for the stack. The functions of a chain of calls share 512 bytes of
 * it, and IPv6 addresses are four times as long as IPv4's, which do without this.
 *
 * Each CPU has one of each. Only programs of tc and XDP may use them: they run with softirqs
 * off, so that none interrupts another. Netfilter's do not. On a kernel with PREEMPT_RT this
 * needs the lock that softirqs of a CPU hold there (PREEMPT_RT_NEEDS_BH_LOCK since Linux 6.18).
 */
#ifndef FBR_SCRATCH_H
#define FBR_SCRATCH_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"
#include "nat.h"
#include "packet.h"

/* FBR_SCRATCH(type, name) declares struct type *name. It is never NULL, but the verifier wants
 * to see that checked. FBR_SCRATCH_ZERO also fills it with zeros.
 */
#if FBR_AF == 4
#define FBR_SCRATCH(type, name)      struct type name##_, *name = &name##_
#define FBR_SCRATCH_ZERO(type, name) struct type name##_ = {}, *name = &name##_
#else
struct fbr_scratch {
	struct fbr_seen seen;
	struct fbr_pkt pkt;
	struct fbr_pkt quoted; /* by an ICMP error */
	struct fbr_pkt rewritten;
	struct fbr_flow_key key;
	struct fbr_flow_key in; /* of the session at the other end */
	struct bpf_fib_lookup fib;
	struct bpf_sock_tuple tuple;
	struct fbr_session carried; /* fbr_control's, which uses no other */
	struct fbr_new new;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[sizeof(struct fbr_scratch)]);
} fbr_scratch SEC(".maps");

static __always_inline struct fbr_scratch *fbr_scratch_get(void)
{
	__u32 zero = 0;

	return (void *)bpf_map_lookup_elem(&fbr_scratch, &zero);
}

#define FBR_SCRATCH(type, name)                          \
	struct fbr_scratch *name##_ = fbr_scratch_get(); \
	struct type *name = name##_ ? &name##_->name : NULL

#define FBR_SCRATCH_ZERO(type, name) \
	FBR_SCRATCH(type, name);     \
	if (name)                    \
	__builtin_memset(name, 0, sizeof(*name))
#endif

#endif
