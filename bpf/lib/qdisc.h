/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a port's device has a queueing discipline, tc filters or chains of nft's netdev
 * family. A redirect to the device would bypass them. The same of its bridge, whose device
 * everything passes that is routed to or from a port, and of an uplink.
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

/* Whether a device has anything that a redirect past it would bypass. */
static __always_inline bool fbr_device_queues(struct net_device *dev)
{
	struct Qdisc *q = dev->qdisc;

	/* A qdisc that the kernel attaches by itself has no handle. */
	return (q && q->handle) || fbr_hook_filtered(dev->tcx_ingress) ||
	       fbr_hook_filtered(dev->tcx_egress) || fbr_device_chained(dev);
}

/* The bridge of a port's device (netdev_master_upper_dev_get() in net/core/dev.c), or NULL. */
static __always_inline struct net_device *fbr_master(struct net_device *dev)
{
	struct list_head *head = __builtin_preserve_access_index(&dev->adj_list.upper);
	struct netdev_adjacent *above;
	struct list_head *first = NULL;

	bpf_probe_read_kernel(&first, sizeof(first), head);
	if (!first || first == head)
		return NULL;
	above = (void *)first - bpf_core_field_offset(struct netdev_adjacent, list);
	if (!BPF_CORE_READ(above, master))
		return NULL;
	return bpf_rdonly_cast(BPF_CORE_READ(above, dev),
			       bpf_core_type_id_kernel(struct net_device));
}

static __always_inline void fbr_flag(struct fbr_dev *d, __u32 flag, bool on)
{
	if (on && !(d->flags & flag))
		__sync_fetch_and_or((__u32 *)&d->flags, flag);
	else if (!on && (d->flags & flag))
		__sync_fetch_and_and((__u32 *)&d->flags, ~flag);
}

/* Chooses the path of p, the port whose device the packet is at: the kernel's path while
 * the device has a queue, filters or chains. While its bridge has some, what is routed takes
 * that path. Returns whether every packet takes it, for whatever reason.
 */
__fbr_global bool fbr_choose_path(struct __sk_buff *skb, struct fbr_dev *p)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev, *bridge;

	if (!p || !dev)
		return true;
	bridge = fbr_master(dev);
	fbr_flag(p, FBR_DEV_QUEUES, fbr_device_queues(dev));
	fbr_flag(p, FBR_DEV_BRIDGE_QUEUES, bridge && fbr_device_queues(bridge));
	return p->flags & FBR_DEV_KERNEL_PATH;
}

/* Notes whether the device that the packet comes in by, the uplink u, has filters or chains
 * for what comes in: a shaper on an ifb, for example.
 */
__fbr_global int fbr_note_filters(struct __sk_buff *skb, struct fbr_dev *u)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;

	if (u && dev)
		fbr_flag(u, FBR_DEV_QUEUES,
			 fbr_hook_filtered(dev->tcx_ingress) ||
				 (bpf_core_field_exists(dev->nf_hooks_ingress) &&
				  dev->nf_hooks_ingress));
	return 0;
}

/* Whether the device that the packet leaves by sorts packets into classes (htb, hfsc, prio).
 * What its filters and skb->priority go by, such as a mark, comes of the kernel's path. Every
 * other qdisc there sees the same packets whatever path they have taken.
 */
__fbr_global bool fbr_device_sorts(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	const struct Qdisc_class_ops *classes;
	struct net_device *dev = k->dev;
	struct Qdisc *q;

	q = dev ? dev->qdisc : NULL;
	if (!q || !q->handle)
		return false;
	classes = BPF_CORE_READ(q, ops, cl_ops);
	return classes && BPF_CORE_READ(classes, graft) && BPF_CORE_READ(classes, tcf_block);
}

#endif
