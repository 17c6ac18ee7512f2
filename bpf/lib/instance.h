/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The datapath as a whole: the layout of its maps, its settings, its bookkeeping.
 *
 * Every map is declared in the header of its concept, beside the type of its values. In
 * maps, addresses and L4 ports are in network byte order and everything else in host byte
 * order, unless a field says otherwise. Go sets the max_entries marked "sized by Go" from
 * fbr_meta before loading. All maps are pinned under their own names.
 */
#ifndef FBR_INSTANCE_H
#define FBR_INSTANCE_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

/* The layout of the maps in numbers, as far as Go needs them, too. */
enum fbr_layout {
	/* Orders the layouts of the maps, so that an older build leaves a newer one's maps
	 * alone. Raised once between two releases if the layout of any map has changed
	 * (datapath/layout.go compares them).
	 */
	FBR_SCHEMA = 4,
	FBR_DEVS_MAX = 16384,      /* slots of fbr_devs: ifindex modulo this */
	FBR_DEVS_MORE = 1024,      /* further slots, for devices whose slot is taken */
	FBR_STATS_MAX = 4096,      /* devices at the same time */
	FBR_FLOWS_LIMIT = 1 << 22, /* sessions at most, whatever is set */
	FBR_SLOW = 0,              /* indexes into fbr_stats.rx and tx */
	FBR_FAST = 1,
};

/* fbr_meta[0]: written by Create, read by every later command. magic and schema come first
 * in every layout. nat_first and nat_count are the range for new mappings, and may change.
 */
struct fbr_meta {
	__u32 magic;
	enum fbr_layout schema;
	__u32 flows_max;
	__u32 nat_first;
	__u32 nat_count;
	__u32 mark;
	__u32 hz;
	__u32 epoch; /* raised by each upgrade */
	__u64 build; /* identifies the object file of the programs */
	/* jiffies when sessions of another layout's maps were first read; 0: never */
	__u64 carried_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_meta);
} fbr_meta SEC(".maps");

/* fbr_conf[0]: settings that user space changes while the programs run */
struct fbr_conf {
	__u64 revoked_at; /* jiffies; leases granted up to then are invalid */
	__u64 hold_until; /* jiffies; no session begins before (carry.h) */
	__u32 lease;      /* jiffies; 0: no fast path */
	__u32 published;  /* there are publications */
	__u32 frags;      /* device (FBR_DEV_FRAGS) to send inbound fragments to; 0: none */
	/* All external ports are in this range, host byte order. It includes earlier ranges
	 * whose mappings still live. fbr_pool says which ports new mappings may have.
	 */
	__u32 nat_first;
	__u32 nat_count;
	/* New devices of the host forward only because of our setting: IPv4, IPv6. */
	__u32 opened;
	__u32 opened6;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_conf);
} fbr_conf SEC(".maps");

static __always_inline struct fbr_conf *fbr_conf_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fbr_conf, &zero);
}

#define FBR_PORT_TRIES 8 /* allocations are counted by the number of ports looked at, up to this */

/* fbr_state[0]: the datapath's own bookkeeping; user space only reads it */
struct fbr_state {
	__u64 live;    /* sessions */
	__u64 waiting; /* of these, with FBR_S_WAITING */
	__u64 fresh;   /* the first slot that was never used */
	__u64 hand;    /* the next slot to sweep */
	__u64 tick;    /* jiffies of the last sweep */
	__u64 overloads;
	__u64 remaps; /* flows moved to another port because the host or a neighbour has theirs */
	__u64 reclaimed;
	/* sessions begun outside, given up before they were assured */
	__u64 dropped_early;
	__u64 refused_full;
	__u64 refused_quota;
	/* Allocations by the number of ports looked at. [0]: looked at more, or found none. */
	__u64 tries[FBR_PORT_TRIES + 1];
	__u32 epoch;     /* epoch of the program whose callback the timer holds */
	__u32 frag_hand; /* the next slot of fbr_frag_slot to look at */
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_state);
} fbr_state SEC(".maps");

static __always_inline struct fbr_state *fbr_state_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fbr_state, &zero);
}

#endif
