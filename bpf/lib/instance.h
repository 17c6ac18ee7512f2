/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The datapath as a whole: the layout of its maps, its settings, its bookkeeping.
 *
 * Every map is declared in the header of its concept, beside the type of its values.
 * Addresses and L4 ports in maps are in network byte order, everything else is in
 * host order, unless a field says otherwise. Go sets the max_entries marked "sized by
 * Go" from fbr_meta before loading. All maps are pinned under their own name.
 */
#ifndef FBR_INSTANCE_H
#define FBR_INSTANCE_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

/* Orders the layouts of the maps: raised once between two releases in which the
 * shape of any map differs (datapath/layout.go compares them), so that an older
 * build leaves a newer one's maps alone.
 */
enum fbr_schema {
	FBR_SCHEMA = 4,
};

/* fbr_meta[0]: written by Create, read by every later command; the NAT range may
 * change, nat_first and nat_count are the one for new mappings; magic and
 * schema stand first in every layout
 */
struct fbr_meta {
	__u32 magic;
	enum fbr_schema schema;
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

/* fbr_conf[0]: what user space changes while the programs run */
struct fbr_conf {
	__u64 revoked_at; /* jiffies; leases granted up to then are void */
	__u64 hold_until; /* jiffies; before, no session begins (carry.h) */
	__u32 lease;      /* jiffies; 0: no routed fast path */
	__u32 l2_fast;    /* 0: frames between ports take the kernel bridge */
	__u32 published;  /* there are publications */
	__u32 frags;      /* device (FBR_DEV_FRAGS) that inbound fragments are sent to; 0: none */
	/* External ports lie between these, host order. Which of them mappings may have
	 * now, fbr_pool says: it is fewer where the NAT range has been another.
	 */
	__u32 nat_first;
	__u32 nat_count;
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

#define FBR_PORT_TRIES 8 /* ports looked at by one allocation that are told apart */

/* fbr_state[0]: the datapath's own bookkeeping; user space only reads it */
struct fbr_state {
	__u64 live;    /* sessions */
	__u64 waiting; /* of these, with FBR_S_WAITING */
	__u64 fresh;   /* slots never used so far start here */
	__u64 hand;    /* next slot to sweep */
	__u64 tick;    /* jiffies of the last sweep */
	__u64 overloads;
	__u64 remaps; /* flows beside the host's or a neighbour's that got another port */
	__u64 reclaimed;
	/* Sessions begun outside that were given up before they were assured. */
	__u64 dropped_early;
	__u64 refused_full;
	__u64 refused_quota;
	/* Allocations that looked at so many ports; [0]: at more, or found none. */
	__u64 tries[FBR_PORT_TRIES + 1];
	__u32 epoch;     /* of the program whose callback the timer holds */
	__u32 frag_hand; /* next slot of fbr_frag_slot to look at */
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
