/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Access to the kernel's own structures behind a program's context: kfuncs that convert and
 * change nothing.
 */
#ifndef FBR_KCTX_H
#define FBR_KCTX_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;
extern int bpf_dynptr_from_skb(struct sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym;

#endif
