/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps. Go sets the max_entries marked "sized by Go" from fbr_meta before
 * loading. All are pinned under their own name.
 */
#ifndef FBR_MAPS_H
#define FBR_MAPS_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"
#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_meta);
} fbr_meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_conf);
} fbr_conf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fbr_state);
} fbr_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_DEVS_MAX + FBR_DEVS_MORE);
	__type(key, __u32);
	__type(value, struct fbr_dev);
} fbr_devs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_stats);
} fbr_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_drops);
} fbr_drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_quota);
} fbr_quota SEC(".maps");

/* MAC to port, per bridge */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * FBR_STATS_MAX);
	__type(key, struct fbr_fdb_key);
	__type(value, __u32); /* ifindex */
} fbr_fdb SEC(".maps");

/* The port last found in fbr_fdb, by a hash of what it was found under. A hint:
 * the port's own addresses are compared.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << FBR_FDB_BITS);
	__type(key, __u32);
	__type(value, __u32); /* ifindex */
} fbr_fdb_near SEC(".maps");

/* container address to port; subnets of an instance never overlap */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * FBR_STATS_MAX);
	__type(key, __be32);
	__type(value, __u32); /* ifindex */
} fbr_hosts SEC(".maps");

/* Subnets. Read on the kernel path only: a trie costs more than all the rest of a hit. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_net_key);
	__type(value, struct fbr_net);
} fbr_nets SEC(".maps");

/* NAT state: plain preallocated maps, never LRU, which would evict half a pair */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048); /* sized by Go: 2 a session */
	__type(key, __u32);
	__type(value, struct fbr_flow);
} fbr_flow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048); /* sized by Go: 2 a session */
	__type(key, struct fbr_flow_key);
	__type(value, __u32); /* index into fbr_flow */
} fbr_flow_of SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048); /* sized by Go: a power of two, at least 2 a session */
	__type(key, __u32);
	__type(value, struct fbr_near);
} fbr_near SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024); /* sized by Go */
	__type(key, __u32);
	__type(value, struct fbr_session);
} fbr_sess SEC(".maps");

/* slots given back; those never used are handed out by fbr_state.fresh */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, __u32);
} fbr_free SEC(".maps");

/* Slots of TCP sessions that are over, longest first: the first to be given up
 * under pressure. fbr_doubted has those of which only a RST from outside says so,
 * which anybody can forge: the last ones. A slot stands in each at most once
 * (fbr_session.queued), so they cannot overflow.
 */
struct fbr_slot_queue {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, __u32);
};

struct fbr_slot_queue fbr_closed SEC(".maps");
struct fbr_slot_queue fbr_doubted SEC(".maps");

/* Sessions that were begun outside, oldest first. Those that are over, or assured,
 * are thrown out by whoever comes across them at the head.
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, struct fbr_wait);
} fbr_waiting SEC(".maps");

/* endpoint-independent mapping: source to external port */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* sized by Go: no more than sessions, nor than ports */
	__type(key, struct fbr_bind_key);
	__type(value, __u32); /* the port, host byte order */
} fbr_bind SEC(".maps");

/* Published ports, and by the container's address and port the host's (0: any
 * address). Allocated as they come: there are none, a few, or tens of thousands.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_PUBS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_bind_key);
	__type(value, struct fbr_pub);
} fbr_pub SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_PUBS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_bind_key);
	__type(value, struct fbr_bind_key);
} fbr_pub_of SEC(".maps");

/* The host's own addresses, as the control plane last saw them: read only by
 * sockets of the host that use a published port, for which there is no route lookup.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_STATS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u32); /* unused */
} fbr_local SEC(".maps");

/* Where sockets of the host were led. Lives and dies with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct fbr_sock);
} fbr_told SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_CLASSES << 16);
	__type(key, __u32);
	__type(value, struct fbr_nport);
} fbr_nport SEC(".maps");

/* Contacted addresses of networks with address-dependent filtering, and how many
 * sessions lead there. Its memory is taken at creation like that of all NAT
 * state: what would be refused to an insert, the filter would refuse to a remote.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* sized by Go */
	__type(key, struct fbr_peer_key);
	__type(value, __u32);
} fbr_peer SEC(".maps");

/* Datagrams whose fragments are passing, and the keys by slot, so that what has
 * expired can be found (frag.h).
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FBR_FRAGS_MAX);
	__type(key, struct fbr_frag_key);
	__type(value, struct fbr_frag);
} fbr_frag SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_FRAGS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_frag_key);
} fbr_frag_slot SEC(".maps");

/* The next IP id of outbound fragments, by a hash of where they go; the uplink
 * that inbound fragments came by, by a hash of what they belong to.
 */
struct fbr_frag_lanes {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_FRAG_LANES);
	__type(key, __u32);
	__type(value, __u32);
};

struct fbr_frag_lanes fbr_frag_id SEC(".maps");
struct fbr_frag_lanes fbr_frag_via SEC(".maps");

/* The sender's slot of a hairpinned packet, by a hash of the packet as the kernel
 * routes it. A hint: what is read here is compared with the sessions.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_HAIR_HINTS);
	__type(key, __u32);
	__type(value, __u32);
} fbr_hair SEC(".maps");

/* Packets for ports of the NAT range that INPUT let through, by a hash that is also
 * the value (refusal.h)
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_PASSED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} fbr_passed SEC(".maps");

/* The free external ports of each protocol */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_CLASSES);
	__type(key, __u32);
	__type(value, struct fbr_pool);
} fbr_pool SEC(".maps");

static __always_inline struct fbr_conf *fbr_conf_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fbr_conf, &zero);
}

static __always_inline struct fbr_state *fbr_state_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fbr_state, &zero);
}

/* The second slot of a device. Those that share the first differ in the quotient. */
static __always_inline __u32 fbr_dev_elsewhere(__u32 ifindex)
{
	return FBR_DEVS_MAX + (ifindex + ifindex / FBR_DEVS_MAX) % FBR_DEVS_MORE;
}

/* The entry of a device, or NULL if it is not ours. */
static __always_inline struct fbr_dev *fbr_dev_get(__u32 ifindex)
{
	__u32 slot = ifindex % FBR_DEVS_MAX;
	struct fbr_dev *d = bpf_map_lookup_elem(&fbr_devs, &slot);

	if (!d || !ifindex)
		return NULL;
	if (d->ifindex == ifindex)
		return d;
	slot = fbr_dev_elsewhere(ifindex);
	d = bpf_map_lookup_elem(&fbr_devs, &slot);
	return d && d->ifindex == ifindex ? d : NULL;
}

/* The port of the container that has an address, or NULL. */
static __always_inline struct fbr_dev *fbr_host_port(__be32 addr)
{
	__u32 *ifindex = bpf_map_lookup_elem(&fbr_hosts, &addr);

	return ifindex ? fbr_dev_get(*ifindex) : NULL;
}

/* What a device holds, or NULL if it is gone. */
static __always_inline struct fbr_quota *fbr_quota_get(__u32 ifindex)
{
	struct fbr_dev *d = fbr_dev_get(ifindex);
	__u32 i;

	if (!d)
		return NULL;
	i = d->stats;
	return bpf_map_lookup_elem(&fbr_quota, &i);
}

/* The network an address (network byte order) belongs to, or NULL. */
static __always_inline struct fbr_net *fbr_net_get(__be32 addr)
{
	struct fbr_net_key k = { .prefixlen = 32, .addr = addr };

	return bpf_map_lookup_elem(&fbr_nets, &k);
}

#endif
