/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps of external ports: who owns which, and which are free. */
#ifndef FBR_EXTPORT_H
#define FBR_EXTPORT_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"

enum fbr_class {
	FBR_CLASS_TCP,
	FBR_CLASS_UDP,
	FBR_CLASS_ICMP,
	FBR_CLASSES,
};

#define FBR_PORTS 65536 /* in each class */

struct fbr_bind_key {
	fbr_addr ip;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

/* Endpoint-independent mapping: source to external port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* sized by Go: at most as many as sessions or ports */
	__type(key, struct fbr_bind_key);
	__type(value, __u32); /* the port, host byte order */
} fbr_bind SEC(".maps");

/* fbr_nport[class * FBR_PORTS + port]: the present or the last owner */
struct fbr_nport {
	__u32 refs;   /* sessions that use it; the last one releases it */
	fbr_addr ip;  /* owner */
	__be16 port;  /* owner's source port */
	__u16 bound;  /* an entry in fbr_bind points here */
	__u32 pif;    /* owner's device; 0: the host */
	fbr_addr ext; /* the external address it was last used with */
#if FBR_AF == 6
	__u32 uplink; /* the device that leads to it (ifindex); 0: any */
#endif
	__u64 noted_at; /* jiffies: seen in use beside any mapping; 0: not since one took it */
	/* jiffies: its owner last sent something (EIF and ADF only), or released it */
	__u64 used_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_CLASSES *FBR_PORTS);
	__type(key, __u32);
	__type(value, struct fbr_nport);
} fbr_nport SEC(".maps");

/* A remote address that a mapping has contacted. Address-dependent filtering admits it. */
struct fbr_peer_key {
	__u32 nport; /* index into fbr_nport */
	fbr_addr addr;
};

/* The contacted addresses in networks with address-dependent filtering, and how many
 * sessions lead to each. Its memory is allocated at creation, like that of all NAT state:
 * if an insert failed, the filter would refuse the remote.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* sized by Go */
	__type(key, struct fbr_peer_key);
	__type(value, __u32);
} fbr_peer SEC(".maps");

enum fbr_port_state : __u8 {
	FBR_PORT_OPEN = 1,  /* mappings may have it */
	FBR_PORT_FREE = 2,  /* in the ring */
	FBR_PORT_TAKEN = 4, /* by a mapping */
};

/* fbr_pool[class]: the free external ports. See pool.h. */
struct fbr_pool {
	struct bpf_spin_lock lock; /* of everything below */
	__u32 head;
	__u32 ripe;
	__u32 tail;
	__u32 open;                           /* ports with FBR_PORT_OPEN */
	__u16 ring[FBR_PORTS];                /* free ports, by place */
	__u16 at[FBR_PORTS];                  /* places, by free port */
	enum fbr_port_state state[FBR_PORTS]; /* by port */
};

_Static_assert(FBR_PORTS == 1 << 16, "a __u16 is a port, and a place in fbr_pool.ring");

/* The free external ports of each class. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_CLASSES);
	__type(key, __u32);
	__type(value, struct fbr_pool);
} fbr_pool SEC(".maps");

#endif
