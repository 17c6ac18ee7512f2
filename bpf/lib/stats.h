/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters. They are per CPU and not atomic: tcx and XDP programs run with bottom halves
 * off and never nest on one device, so nothing else on this CPU writes the same line.
 * fbr_guard is the exception: it may run in process context. It counts only drops, and
 * losing one of those is acceptable.
 *
 * Packets are wire packets (gso_segs), and bytes are skb->len with the L2 header, as the
 * kernel counts them on the container's own device.
 */
#ifndef FBR_STATS_H
#define FBR_STATS_H

#include "device.h"
#include "reason.h"

struct fbr_path {
	__u64 packets;
	__u64 bytes;
};

/* One cache line for each device and CPU. RX: the host received it from the device. */
struct fbr_stats {
	struct fbr_path rx[2]; /* [FBR_SLOW], [FBR_FAST] */
	struct fbr_path tx[2];
};

_Static_assert(sizeof(struct fbr_stats) == 64, "fbr_stats");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_stats);
} fbr_stats SEC(".maps");

struct fbr_drops {
	__u64 n[FBR_REASON_MAX]; /* by enum fbr_reason */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_drops);
} fbr_drops SEC(".maps");

static __always_inline struct fbr_stats *fbr_stats_get(const struct fbr_dev *d)
{
	__u32 i = d->stats;

	return bpf_map_lookup_elem(&fbr_stats, &i);
}

static __always_inline void fbr_count_path(struct __sk_buff *skb, struct fbr_path *p, int fast)
{
	__u32 segs = skb->gso_segs;

	p->packets += segs ? segs : 1;
	p->bytes += skb->len;
	/* The kernel has taken the tag out of the frame. Tagged frames are never fast. */
	if (!fast && skb->vlan_present)
		p->bytes += 4;
}

static __always_inline void fbr_count_rx(struct __sk_buff *skb, const struct fbr_dev *d, int fast)
{
	struct fbr_stats *s = fbr_stats_get(d);

	if (s)
		fbr_count_path(skb, &s->rx[fast], fast);
}

static __always_inline void fbr_count_tx(struct __sk_buff *skb, const struct fbr_dev *d, int fast)
{
	struct fbr_stats *s = fbr_stats_get(d);

	if (s)
		fbr_count_path(skb, &s->tx[fast], fast);
}

/* Counts one frame of so many bytes in XDP, which sees neither segments nor tags. */
static __always_inline void fbr_count_frame(struct fbr_path *p, __u32 bytes)
{
	p->packets++;
	p->bytes += bytes;
}

static __always_inline void fbr_count_drop(const struct fbr_dev *d, __u32 reason)
{
	__u32 i = d->stats;
	struct fbr_drops *n = bpf_map_lookup_elem(&fbr_drops, &i);

	/* The compiler knows that reasons are small, the verifier does not. */
	barrier_var(reason);
	if (n && reason < FBR_REASON_MAX)
		n->n[reason]++;
}

static __always_inline int fbr_drop(const struct fbr_dev *d, __u32 reason)
{
	fbr_count_drop(d, reason);
	return TCX_DROP;
}

#endif
