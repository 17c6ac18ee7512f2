/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps of flows and sessions. Those of external ports are in extport.h. */
#ifndef FBR_NAT_H
#define FBR_NAT_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"
#include "af.h"
#include "device.h"
#include "instance.h"

/* The addresses and ports of a packet as on the wire before the NAT rewrites it. Both
 * directions are in one map. The id of an ICMP echo is in sport on the way out and in dport
 * on the way in; the other port is 0.
 */
struct fbr_flow_key {
	fbr_addr saddr;
	fbr_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
} __attribute__((aligned(8)));

enum fbr_flow_kind {
	FBR_OUT = 1,  /* container to outside: rewrite the source */
	FBR_IN = 2,   /* outside to container: rewrite the destination */
	FBR_HOST = 4, /* flag: the host's or a neighbour NAT's, not a port's; never fast */
};

/* fbr_flow[2 * slot of the session; + 1 inbound]: everything a hit needs. See flow.h for
 * its owner. The lease (granted, lease_len) is written last.
 */
#if FBR_AF == 4
struct fbr_flow {
	struct fbr_flow_key key; /* proto 0: the entry is not in use */
	__u64 granted;           /* jiffies when the kernel let a packet through; 0: no lease */
	__u64 seen;              /* jiffies of the last packet, accurate to a second */
	fbr_addr addr;           /* the new source (out) or destination (in) */
	__be16 port;
	__u16 lease_len; /* jiffies */
	__u32 oif;       /* device to send to: uplink (out), port (in) */
	__u32 iif;       /* device to come in by: the container's port (out), the lease's (in) */
	__u32 sess;      /* index into fbr_sess */
	__u16 mtu;       /* of the way out, bytes, L3 */
	__u16 d_addr;    /* one's complement difference of the addresses */
	__u16 d_l4;      /* the same for all that the L4 checksum covers */
	__u8 kind;       /* enum fbr_flow_kind */
	__u8 no_xdp;     /* in: XDP has left a packet to tc, which keeps the rest of the lease's */
	__u8 macs[12];   /* destination and source, from the frame that the kernel built */
};
#else
/* Two cache lines long: the first has what tells a hit from a miss. */
struct fbr_flow {
	struct fbr_flow_key key;
	__u64 granted;
	__u64 seen;
	__u32 iif;
	__u16 lease_len;
	__u8 kind;
	__u8 no_xdp;
	fbr_addr addr;
	__be16 port;
	__u16 mtu;
	__u32 oif;
	__u32 sess;
	__u16 d_addr;
	__u16 d_l4;
	__u8 macs[12];
	__u8 pad[20];
};
#endif

_Static_assert(sizeof(struct fbr_flow_key) == 8 * FBR_KEY_WORDS, "fbr_flow_key");
_Static_assert(sizeof(struct fbr_flow) == (FBR_AF == 4 ? 72 : 128), "fbr_flow");

/* NAT state. Plain preallocated maps, never LRU: that would evict half a pair. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048); /* sized by Go: 2 for each session */
	__type(key, __u32);
	__type(value, struct fbr_flow);
} fbr_flow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048); /* sized by Go: 2 for each session */
	__type(key, struct fbr_flow_key);
	__type(value, __u32); /* index into fbr_flow */
} fbr_flow_of SEC(".maps");

/* fbr_near[hash of a key]: the entries last found under keys with that hash (flow.h) */
struct fbr_near {
	__u32 entry[2]; /* index into fbr_flow, and some bits of the hash; the later one first */
} __attribute__((aligned(8)));

_Static_assert(sizeof(struct fbr_near) == 8, "fbr_near");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048); /* sized by Go: a power of two, at least 2 for each session */
	__type(key, __u32);
	__type(value, struct fbr_near);
} fbr_near SEC(".maps");

/* The low bits of fbr_session.state. The rest counts how often the slot was freed, so that
 * whoever claims a session claims the one it has judged.
 */
enum fbr_sess_state {
	FBR_FREE = 0,
	FBR_LIVE = 1,
	FBR_DYING = 2, /* claimed by whoever deletes it */
	FBR_STATE_MASK = 3,
};

enum fbr_sess_bits {
	FBR_S_REPLIED = 2, /* a packet came back */
	/* The side that began it has sent again after an answer (TCP: neither SYN nor RST),
	 * so it has received the answer: conntrack's IPS_ASSURED. A container's TCP session
	 * needs no answer.
	 */
	FBR_S_ASSURED = 4,
	FBR_S_FIN_OUT = 8,
	FBR_S_FIN_IN = 16,
	FBR_S_RST = 32,
	FBR_S_OVERLOAD = 128, /* shares an external port it does not own */
	FBR_S_HOST = 256,
	FBR_S_INBOUND = 512, /* begun by the remote: on a published port, or by EIF or ADF */
	/* Only outbound packets keep it alive. Otherwise an outsider could (RFC 7857 section 7). */
	FBR_S_OUT_ONLY = 1024,
	FBR_S_PEER = 2048,      /* counted in fbr_peer */
	FBR_S_HALF = 4096,      /* counted in fbr_quota.half */
	FBR_S_PUBLISHED = 8192, /* its external port is a publication's */
	/* Anybody outside may have caused it, from any address: counted in
	 * fbr_state.waiting and in nobody's quota. TCP: until it is assured.
	 */
	FBR_S_WAITING = 16384,
	FBR_S_RST_IN = 32768, /* established, then ended only by a RST from the remote */
};

/* fbr_sess[slot]: what the two flow entries of a session share */
struct fbr_session {
	struct fbr_flow_key fwd; /* key of the outbound entry */
	fbr_addr ext;            /* external address */
	__be16 eport;            /* external port or ICMP id */
	__u16 pad;
	enum fbr_sess_state state; /* and a count; changed by compare-and-swap only */
	enum fbr_sess_bits bits;   /* changed atomically */
	__u32 pif;                 /* the container's port */
	__u32 payer;               /* the port whose quota it counts in; 0: pif */
	__u32 queued;              /* enum fbr_queued; changed atomically */
	__u32 isn;      /* begun outside: TCP sequence number of the SYN-ACK, host byte order */
	__u64 check_at; /* jiffies; it cannot expire earlier */
};

_Static_assert(sizeof(struct fbr_session) == (FBR_AF == 4 ? 56 : 96), "fbr_session");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024); /* sized by Go */
	__type(key, __u32);
	__type(value, struct fbr_session);
} fbr_sess SEC(".maps");

/* A session to be created. */
struct fbr_new {
	struct fbr_flow_key fwd;
	fbr_addr ext;
	__u32 pif;   /* 0: the host */
	__u32 payer; /* the port whose quota it counts in; 0: pif */
	__u32 slot;
	__be16 eport;           /* external port, or ICMP id */
	enum fbr_net_flags net; /* of the container's network; 0: the host */
	bool owns;              /* the external port is counted, not shared */
	bool inbound;           /* begun by the remote: on a live mapping or not at all */
	bool outside;           /* the remote is outside, not a container of this host */
	bool published;         /* eport is a publication's, not one of the range */
	bool own;               /* ext and eport are the container's own */
	bool moved;             /* the host or a neighbour has the port that it would have had */
#if FBR_AF == 6
	__u32 uplink; /* that it leaves by (ifindex); 0: none yet */
#endif
};

/* Slots given back. Slots that were never used come from fbr_state.fresh. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, __u32);
} fbr_free SEC(".maps");

/* The queues that a slot is in */
enum fbr_queued {
	FBR_Q_CLOSED = 1,
	FBR_Q_DOUBTED = 2,
};

/* Slots of closed TCP sessions, the longest-closed first: they are given up first under
 * pressure. fbr_doubted holds those closed only by a RST from outside, which anybody can
 * forge: they are given up last. A slot is in each queue at most once (fbr_session.queued),
 * so neither can overflow.
 */
struct fbr_slot_queue {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, __u32);
};

struct fbr_slot_queue fbr_closed SEC(".maps");
struct fbr_slot_queue fbr_doubted SEC(".maps");

/* An entry of fbr_waiting. state is the session's when it was queued: while it is the same,
 * the session is the same.
 */
struct fbr_wait {
	__u32 slot;
	__u32 state;
};

/* Sessions begun outside, oldest first. Whoever finds one at the head that is over or
 * assured removes it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024); /* sized by Go */
	__type(value, struct fbr_wait);
} fbr_waiting SEC(".maps");

#endif
