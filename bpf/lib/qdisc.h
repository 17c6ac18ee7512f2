/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a port's device has a queueing discipline, tc filters or chains of nft's netdev
 * family. A redirect to the device would bypass them.
 *
 * Every packet that passes the port off the fast path asks the kernel's own device. So no
 * process has to notice a shaper that is added later, for example by a later plugin of a
 * CNI chain. The control plane asks the same by netlink, except for chains (FBR_DEV_SLOW).
 */
#ifndef FBR_QDISC_H
#define FBR_QDISC_H

#include "../include/bpf/bpf_core_read.h"
#include "device.h"
#include "kctx.h"

/* Whether a clsact or ingress qdisc has filters at this hook. tcx programs do not count. */
static __always_inline bool fbr_hook_filtered(struct bpf_mprog_entry *e)
{
	struct bpf_mprog_bundle *b = e ? e->parent : NULL;
	struct tcx_entry *t;

	if (!b)
		return false;
	t = bpf_rdonly_cast((void *)b - bpf_core_field_offset(struct tcx_entry, bundle),
			    bpf_core_type_id_kernel(struct tcx_entry));
	return t->miniq;
}

/* Whether the device has chains of nft's netdev family. */
static __always_inline bool fbr_device_chained(struct net_device *dev)
{
	return (bpf_core_field_exists(dev->nf_hooks_ingress) && dev->nf_hooks_ingress) ||
	       (bpf_core_field_exists(dev->nf_hooks_egress) && dev->nf_hooks_egress);
}

static __always_inline bool fbr_device_queues(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;
	struct Qdisc *q;

	if (!dev)
		return false;
	q = dev->qdisc;
	/* A qdisc that the kernel attaches by itself has no handle. */
	return (q && q->handle) || fbr_hook_filtered(dev->tcx_ingress) ||
	       fbr_hook_filtered(dev->tcx_egress) || fbr_device_chained(dev);
}

/* Chooses the path of p, the port whose device the packet is at: the kernel's path while
 * the device has a queue, filters or chains. Returns whether it is the kernel's path, for
 * whatever reason.
 */
__fbr_global bool fbr_choose_path(struct __sk_buff *skb, struct fbr_dev *p)
{
	bool queues;

	if (!p)
		return true;
	queues = fbr_device_queues(skb);
	if (queues && !(p->flags & FBR_DEV_QUEUES))
		__sync_fetch_and_or((__u32 *)&p->flags, FBR_DEV_QUEUES);
	else if (!queues && (p->flags & FBR_DEV_QUEUES))
		__sync_fetch_and_and((__u32 *)&p->flags, ~(__u32)FBR_DEV_QUEUES);
	return p->flags & FBR_DEV_KERNEL_PATH;
}

#endif
