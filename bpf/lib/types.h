/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Keys and values of the maps. Addresses and L4 ports are in network byte
 * order, everything else in host order.
 */
#ifndef FBR_TYPES_H
#define FBR_TYPES_H

#include "../include/kernel.h"

/* Orders the layouts of the maps: raised once between two releases in which the
 * shape of any map differs (datapath/layout.go compares them), so that an older
 * build leaves a newer one's maps alone.
 */
enum fbr_schema {
	FBR_SCHEMA = 4,
};

#define FBR_DEVS_MAX  16384  /* slots: ifindex modulo this */
#define FBR_DEVS_MORE 1024   /* and beyond them, for devices whose slot is taken */
#define FBR_STATS_MAX 4096   /* devices that can exist at once */
#define FBR_PUBS_MAX  262144 /* published ports */
#define FBR_FDB_BITS  12     /* of a hash of a MAC address, for fbr_fdb_near */

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

enum fbr_dev_flags {
	FBR_DEV_PORT = 1,
	FBR_DEV_UPLINK = 2,
	FBR_DEV_BRIDGE = 4,
	FBR_DEV_SLOW = 8, /* port: always the kernel path, by the control plane */
	FBR_DEV_INTERNAL = 16,
	FBR_DEV_ROUTED = 32,   /* port: its network is not translated */
	FBR_DEV_FRAGS = 64,    /* to the namespace that puts inbound fragments in order */
	FBR_DEV_RAW_IP = 128,  /* uplink: no L2 header */
	FBR_DEV_XDP = 256,     /* port: its container's end takes frames from XDP */
	FBR_DEV_QUEUES = 512,  /* port: the programs have seen a qdisc or filters on it (qdisc.h) */
	FBR_DEV_CLOSED = 1024, /* uplink: nobody but us opened it for forwarding (guard.h) */
};

/* Always the kernel path, whoever says so. */
#define FBR_DEV_KERNEL_PATH (FBR_DEV_SLOW | FBR_DEV_QUEUES)

/* fbr_devs[ifindex % FBR_DEVS_MAX]: a port, an uplink, a bridge, or FBR_DEV_FRAGS. An
 * uplink or a bridge whose slot another device has is at fbr_dev_elsewhere(ifindex).
 */
struct fbr_dev {
	__u32 ifindex; /* 0: slot is free; else must equal the device's */
	__be32 ip;     /* port: the container's; uplink: the primary address */
	__u32 bridge;  /* port: ifindex of its bridge; bridge: itself */
	enum fbr_dev_flags flags;
	__u16 stats;    /* index into fbr_stats, fbr_drops, fbr_quota */
	__u16 mtu;      /* bytes, L3 */
	__u8 mac[6];    /* port: the container's; FBR_DEV_FRAGS: its peer's */
	__u8 gw_mac[6]; /* port: the bridge's */
};

/* fbr_nets: longest prefix match, one entry a subnet */
struct fbr_net_key {
	__u32 prefixlen;
	__be32 addr;
};

enum fbr_net_flags {
	FBR_NET_MASQUERADE = 1,
	FBR_NET_INTERNAL = 2,
	FBR_NET_EDM = 4, /* endpoint-dependent mapping: every flow has a port of its own */
	/* Who may answer: neither bit: the contacted address and port (RFC 4787 section 5) */
	FBR_NET_ADF = 8,     /* any port of a contacted address */
	FBR_NET_EIF = 16,    /* anybody */
	FBR_NET_STRICT = 32, /* no port free: refuse instead of sharing one */
};

struct fbr_net {
	__u32 bridge; /* ifindex */
	enum fbr_net_flags flags;
	__be32 broadcast; /* 0: the subnet has none */
};

struct fbr_fdb_key {
	__u8 mac[6];
	__u16 pad;
	__u32 bridge;
};

struct fbr_path {
	__u64 packets;
	__u64 bytes;
};

/* One cache line a device and CPU. RX = received by the host from the device. */
struct fbr_stats {
	struct fbr_path rx[2]; /* [0] slow, [1] fast */
	struct fbr_path tx[2];
};

struct fbr_drops {
	__u64 n[16]; /* by enum fbr_reason */
};

/* What one port holds, for the quotas */
struct fbr_quota {
	__u32 sessions;
	__u32 ports;
	__u32 half;       /* TCP sessions not established yet */
	__u32 frags;      /* datagrams whose fragments are passing */
	__u64 refused_at; /* jiffies of the last ICMP error about a refused flow */
};

/* A packet as on the wire before this NAT rewrites it; both directions in one
 * map. For ICMP echo the id stands in sport on the way out, in dport on the way
 * in, and the other port is 0.
 */
struct fbr_flow_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
} __attribute__((aligned(8)));

enum fbr_flow_kind {
	FBR_OUT = 1,  /* container to outside: rewrite the source */
	FBR_IN = 2,   /* outside to container: rewrite the destination */
	FBR_HOST = 4, /* flag: of the host or a neighbour NAT, not of a port; never fast */
};

/* fbr_flow[2 * slot of the session; + 1 inbound]: everything a hit needs. flow.h
 * says when it is whose. The lease (granted, lease_len) is written last.
 */
struct fbr_flow {
	struct fbr_flow_key key; /* proto 0: none's */
	__u64 granted;           /* jiffies at which the kernel let a packet through; 0: no lease */
	__u64 seen;              /* jiffies of the last packet, at most a second old */
	__be32 addr;             /* the new source (out) or destination (in) */
	__be16 port;
	__u16 lease_len; /* jiffies */
	__u32 oif;       /* device to send to: uplink (out), port (in) */
	__u32 pif;       /* the container's port; 0 for FBR_HOST */
	__u32 sess;      /* index into fbr_sess */
	__u16 mtu;       /* of the way out, bytes, L3 */
	__u16 d_addr;    /* one's complement difference of the addresses */
	__u16 d_l4;      /* the same for everything the L4 checksum covers */
	__u8 kind;       /* enum fbr_flow_kind */
	__u8 no_xdp;     /* in: XDP has left a packet to tc, which keeps the rest of the lease's */
	__u8 macs[12];   /* destination and source, from the frame the kernel built */
};

/* fbr_near[hash of a key]: the entries last found under keys with that hash (flow.h) */
struct fbr_near {
	__u32 entry[2]; /* index into fbr_flow, and some bits of the hash; the later one first */
} __attribute__((aligned(8)));

/* The low bits of fbr_session.state; the rest counts how often the slot was
 * freed, so that whoever claims a session claims the one it has judged.
 */
enum fbr_sess_state {
	FBR_FREE = 0,
	FBR_LIVE = 1,
	FBR_DYING = 2, /* claimed by the one who deletes it */
	FBR_STATE_MASK = 3,
};

enum fbr_sess_bits {
	FBR_S_REPLIED = 2, /* a packet came back */
	/* Who began it has sent again after an answer (TCP: neither SYN nor RST), and so
	 * has got the answer: conntrack's IPS_ASSURED. TCP of a container's: without one, too.
	 */
	FBR_S_ASSURED = 4,
	FBR_S_FIN_OUT = 8,
	FBR_S_FIN_IN = 16,
	FBR_S_RST = 32,
	FBR_S_OVERLOAD = 128, /* shares an external port it does not own */
	FBR_S_HOST = 256,
	FBR_S_INBOUND = 512, /* begun by the remote: on a published port, or let in by EIF or ADF */
	/* Only outbound packets keep it alive, else an outsider could (RFC 7857 section 7). */
	FBR_S_OUT_ONLY = 1024,
	FBR_S_PEER = 2048,      /* counted in fbr_peer */
	FBR_S_HALF = 4096,      /* counted in fbr_quota.half */
	FBR_S_PUBLISHED = 8192, /* its external port is a publication's */
	/* Anybody outside may have caused it, with any address: counted in fbr_state.waiting, in
	 * nobody's quota. TCP: until it is assured.
	 */
	FBR_S_WAITING = 16384,
	FBR_S_RST_IN = 32768, /* established, then ended by nothing but the remote's RST */
};

/* fbr_sess[slot]: what the two flow entries of a session share */
struct fbr_session {
	struct fbr_flow_key fwd; /* key of the outbound entry */
	__be32 ext;              /* external address */
	__be16 eport;            /* external port or ICMP id */
	__u16 pad;
	__u32 state; /* enum fbr_sess_state and a count; changed by compare-and-swap only */
	enum fbr_sess_bits bits; /* changed atomically */
	__u32 pif;               /* the container's port */
	__u32 payer;             /* the port in whose quota it counts; 0: pif */
	__u32 queued;            /* enum fbr_queued; changed atomically */
	__u32 isn;      /* begun outside: TCP sequence number of the SYN-ACK, host byte order */
	__u64 check_at; /* jiffies before which it cannot have expired */
};

/* The queues that a slot stands in */
enum fbr_queued {
	FBR_Q_CLOSED = 1,
	FBR_Q_DOUBTED = 2,
};

/* An entry of fbr_waiting. state is the session's of that time: a session is the one
 * that was queued as long as it has it.
 */
struct fbr_wait {
	__u32 slot;
	__u32 state;
};

/* A remote address that a mapping has contacted: what address-dependent filtering lets in */
struct fbr_peer_key {
	__u32 nport; /* index into fbr_nport */
	__be32 addr;
};

struct fbr_bind_key {
	__be32 ip;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

/* fbr_pub[host address (0: any), port, protocol]: where a port of the host leads */
struct fbr_pub {
	__be32 ip; /* the container's */
	__be16 port;
	__u8 held; /* the engine keeps a socket on the host's port: sockets there do not count */
	__u8 pad;
	__u32 pif;
	__be32 allow; /* clients: address & mask */
	__be32 allow_mask;
};

#define FBR_TOLD_MAX 4 /* publications that one socket of the host uses at once */

/* A socket of the host was led to ip:port when it asked for host:hport. */
struct fbr_told {
	__be32 ip;
	__be32 host;
	__be16 port;
	__be16 hport;
	__u8 six; /* it asked for ::1 */
	__u8 pad[3];
};

/* fbr_told[socket]: the latest of them, in turn */
struct fbr_sock {
	__u32 turn;
	struct fbr_told told[FBR_TOLD_MAX];
};

/* fbr_nport[class << 16 | port]: who has it, or had it last */
struct fbr_nport {
	__u32 refs;     /* sessions that use it; the last one releases it */
	__be32 ip;      /* owner */
	__be16 port;    /* owner's source port */
	__u16 bound;    /* an entry in fbr_bind points here */
	__u32 pif;      /* owner's device; 0: the host */
	__be32 ext;     /* the address that it was last used with */
	__u64 noted_at; /* jiffies: used beside any mapping; 0: not since one took it */
	__u64 used_at; /* jiffies: its owner last sent something (EIF and ADF only), or gave it back */
};

/* A datagram whose fragments are passing, as on the wire before rewriting */
struct fbr_frag_key {
	__be32 saddr;
	__be32 daddr;
	__be16 id;
	__u8 proto;
	__u8 in; /* from outside, or to an address of the host's */
};

/* What its first fragment has found out */
struct fbr_frag {
	__u64 until; /* jiffies */
	__be32 addr; /* the new source (out) or destination (in) */
	__be16 id;   /* the new one */
	__u16 pad;
	__u32 pif;  /* the container's port */
	__u32 slot; /* index into fbr_frag_slot */
};

#define FBR_FRAGS_MAX  4096 /* datagrams at once; a power of two */
#define FBR_FRAG_LANES 4096 /* of fbr_frag_id and fbr_frag_via */
#define FBR_HAIR_HINTS 4096 /* of fbr_hair */
#define FBR_PASSED_MAX 4096 /* of fbr_passed */

enum {
	FBR_CLASS_TCP,
	FBR_CLASS_UDP,
	FBR_CLASS_ICMP,
	FBR_CLASSES,
};

enum fbr_port_state {
	FBR_PORT_OPEN = 1,  /* mappings may have it */
	FBR_PORT_FREE = 2,  /* stands in the ring */
	FBR_PORT_TAKEN = 4, /* by a mapping */
};

#define FBR_PORTS 65536

/* fbr_pool[class]: the free ones among the external ports; pool.h says how */
struct fbr_pool {
	struct bpf_spin_lock lock; /* for all below */
	__u32 head;
	__u32 ripe;
	__u32 tail;
	__u32 open;            /* ports with FBR_PORT_OPEN */
	__u16 ring[FBR_PORTS]; /* free ports, by place */
	__u16 at[FBR_PORTS];   /* places, by free port */
	__u8 state[FBR_PORTS]; /* enum fbr_port_state, by port */
};

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
	__u64 dropped_early; /* sessions begun outside that were given up before they were assured */
	__u64 refused_full;
	__u64 refused_quota;
	__u64 tries[FBR_PORT_TRIES +
		    1];  /* allocations that looked at so many ports; [0]: at more, or found none */
	__u32 epoch;     /* of the program whose callback the timer holds */
	__u32 frag_hand; /* next slot of fbr_frag_slot to look at */
	struct bpf_timer timer;
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
	__u32 epoch;      /* raised by each upgrade */
	__u64 build;      /* identifies the object file of the programs */
	__u64 carried_at; /* jiffies when sessions of another layout's maps were read first; 0: never */
};

_Static_assert(sizeof(struct fbr_dev) == 32, "fbr_dev");
_Static_assert(sizeof(struct fbr_stats) == 64, "fbr_stats");
_Static_assert(sizeof(struct fbr_flow_key) == 16, "fbr_flow_key");
_Static_assert(sizeof(struct fbr_flow) == 72, "fbr_flow");
_Static_assert(sizeof(struct fbr_near) == 8, "fbr_near");
_Static_assert(sizeof(struct fbr_session) == 56, "fbr_session");

#endif
