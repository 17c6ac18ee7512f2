/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ports, uplinks, bridges and networks: their maps, the lookups, and what each device holds. */
#ifndef FBR_DEVICE_H
#define FBR_DEVICE_H

#include "../include/kernel.h"
#include "../include/bpf/bpf_helpers.h"
#include "af.h"
#include "instance.h"

enum fbr_dev_flags {
	FBR_DEV_PORT = 1,
	FBR_DEV_UPLINK = 2,
	FBR_DEV_BRIDGE = 4,
	FBR_DEV_SLOW = 8,      /* port: always the kernel's path, set by the control plane */
	FBR_DEV_INTERNAL = 16, /* port, bridge: its network is internal */
	FBR_DEV_ROUTED = 32,   /* port: its network is not translated */
	FBR_DEV_FRAGS = 64,    /* leads to the namespace that puts inbound fragments in order */
	FBR_DEV_RAW_IP = 128,  /* uplink: no L2 header */
	FBR_DEV_XDP = 256,     /* port: its container's end takes frames from XDP */
	/* The programs have seen a qdisc, filter or chain (qdisc.h). Uplink: for what comes in. */
	FBR_DEV_QUEUES = 512,
	FBR_DEV_CLOSED = 1024, /* uplink: forwarding is on only because fastbr set it (guard.h) */
	FBR_DEV_WAYS = 2048,   /* uplink: untranslated flows have come in by it (way.h) */
	FBR_DEV_BRIDGE_QUEUES = 4096, /* port: the same as FBR_DEV_QUEUES on its bridge */
	FBR_DEV_EXCEPTS = 8192,       /* port: some of what it sends keeps its address (plain.h) */
	FBR_DEV_SOURCE = 16384, /* port: its network says which source address it gets (local.h) */
	FBR_DEV_SIDE = 32768,   /* uplink: opened with the devices that are no uplinks, if at all */
	FBR_DEV_ALLOWED = 65536, /* port: it may use other addresses, too (allowed.h) */
	FBR_DEV_VIA = 131072,    /* port, bridge: its network has one way out (fbr_net.via) */
	/* Bridge: its network has IPv6. Port: the IPv6 programs stand behind these. */
	FBR_DEV_IP6 = 262144,
	/* What the flags without the 6 say of IPv4, of IPv6 (FBR_IP_* in device6.h) */
	FBR_DEV_CLOSED6 = 524288,
	FBR_DEV_ROUTED6 = 1048576,
	FBR_DEV_EXCEPTS6 = 2097152,
	FBR_DEV_WAYS6 = 4194304,
};

/* Always the kernel's path, for either reason. */
#define FBR_DEV_KERNEL_PATH   (FBR_DEV_SLOW | FBR_DEV_QUEUES)
/* The same for what is routed, which passes the bridge's own device. */
#define FBR_DEV_KERNEL_ROUTED (FBR_DEV_KERNEL_PATH | FBR_DEV_BRIDGE_QUEUES)
/* Some or all of what a port sends keeps its address. */
#define FBR_DEV_PLAIN         (FBR_IP_ROUTED | FBR_IP_EXCEPTS)

/* fbr_devs[ifindex % FBR_DEVS_MAX]: a port, an uplink, a bridge, or FBR_DEV_FRAGS. If
 * another device has that slot, an uplink or a bridge is at fbr_dev_elsewhere(ifindex).
 */
struct fbr_dev {
	__u32 ifindex; /* 0: the slot is free; otherwise it must equal the device's */
	__be32 ip;     /* IPv4; port: the container's; uplink: the primary address */
	__u32 bridge;  /* port: ifindex of its bridge; bridge: itself */
	enum fbr_dev_flags flags;
	__u16 stats;    /* index into fbr_stats, fbr_drops, fbr_quota */
	__u16 mtu;      /* bytes, L3 */
	__u8 mac[6];    /* port: the container's; FBR_DEV_FRAGS: its peer's */
	__u8 gw_mac[6]; /* port: the bridge's */
};

_Static_assert(sizeof(struct fbr_dev) == 32, "fbr_dev");
_Static_assert(FBR_STATS_MAX <= 1 << 16, "fbr_dev.stats is an index below it");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_DEVS_MAX + FBR_DEVS_MORE);
	__type(key, __u32);
	__type(value, struct fbr_dev);
} fbr_devs SEC(".maps");

/* The second slot of a device. Devices that share the first slot differ in the quotient. */
static __always_inline __u32 fbr_dev_elsewhere(__u32 ifindex)
{
	return FBR_DEVS_MAX + (ifindex + ifindex / FBR_DEVS_MAX) % FBR_DEVS_MORE;
}

/* The entry of a device, or NULL if it is not one of ours. */
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

struct fbr_fdb_key {
	__u8 mac[6];
	__u16 pad;
	__u32 bridge;
};

/* MAC address and bridge to port */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * FBR_STATS_MAX);
	__type(key, struct fbr_fdb_key);
	__type(value, __u32); /* ifindex */
} fbr_fdb SEC(".maps");

/* Container address to port. Subnets of an instance never overlap. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * FBR_STATS_MAX);
	__type(key, fbr_addr);
	__type(value, __u32); /* ifindex */
} fbr_hosts SEC(".maps");

#include FBR_AF_DEVICE

/* The bridge (ifindex) of a port, 0 if that is none of ours. */
static __always_inline __u32 fbr_port_bridge(__u32 port)
{
	struct fbr_dev *d = fbr_dev_get(port);

	return d ? d->bridge : 0;
}

/* Fills in what bpf_fib_lookup() is asked: where what comes in by a device (ifindex) goes to
 * that is for daddr. fib is zero else.
 */
static __always_inline void fbr_fib_to(struct bpf_fib_lookup *fib, __u32 ifindex, fbr_addr daddr)
{
	fib->family = FBR_FAMILY;
	fib->ifindex = ifindex;
	fbr_fib_dst(fib) = daddr;
}

/* The port of the container with this address, or NULL. */
static __always_inline struct fbr_dev *fbr_host_port(fbr_addr_arg addr)
{
	__u32 *ifindex = bpf_map_lookup_elem(&fbr_hosts, FBR_ADDR_AT(addr));

	return ifindex ? fbr_dev_get(*ifindex) : NULL;
}

/* fbr_nets: longest prefix match, one entry for each subnet */
struct fbr_net_key {
	__u32 prefixlen;
	fbr_addr addr;
};

enum fbr_net_flags {
	FBR_NET_MASQUERADE = 1,
	FBR_NET_INTERNAL = 2,
	FBR_NET_EDM = 4, /* endpoint-dependent mapping: each flow has its own external port */
	/* Filtering. Neither bit: only the contacted address and port may answer (RFC 4787
	 * section 5).
	 */
	FBR_NET_ADF = 8,     /* any port of a contacted address */
	FBR_NET_EIF = 16,    /* anybody */
	FBR_NET_STRICT = 32, /* if no port is free, refuse instead of sharing one */
	FBR_NET_PLAIN = 64,  /* some destinations are excepted from translation (plain.h) */
	/* With FBR_NET_MASQUERADE: sessions at the containers' own addresses and ports. Nothing
	 * changes on the way, but only answers, ICMP and published ports come in.
	 */
	FBR_NET_OWN = 128,
	FBR_NET_SNAT = 256,      /* what leaves gets fbr_net.snat */
	FBR_NET_ND_PROXY = 1024, /* solicitations at the uplink are answered (nd_proxy.h) */
	FBR_NET_VIA = 512,       /* the only way out, and in from outside, is fbr_net.via */
};

struct fbr_net {
	__u32 bridge; /* ifindex */
	enum fbr_net_flags flags;
	fbr_addr broadcast; /* 0: the subnet has none */
	fbr_addr snat;      /* external address, with FBR_NET_SNAT */
	__u32 via;          /* ifindex, with FBR_NET_VIA; 0: the device is gone */
};

/* Subnets. Only the kernel's path reads them: a lookup costs more than all the rest of a hit. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fbr_net_key);
	__type(value, struct fbr_net);
} fbr_nets SEC(".maps");

/* The network that an address (network byte order) belongs to, or NULL. */
static __always_inline struct fbr_net *fbr_net_get(fbr_addr addr)
{
	struct fbr_net_key k = { .prefixlen = FBR_ADDR_BITS, .addr = addr };

	return bpf_map_lookup_elem(&fbr_nets, &k);
}

/* Whether an address is the one that the host has on the network's bridge. */
static __always_inline bool fbr_is_gateway(const struct fbr_net *n, fbr_addr addr)
{
	struct fbr_dev *br = fbr_dev_get(n->bridge);

	return br && fbr_addr_eq(fbr_dev_ip(br), addr);
}

/* Whether packets between the network n and the outside may pass a device. */
static __always_inline bool fbr_net_leads(const struct fbr_net *n, __u32 ifindex)
{
	return !(n->flags & FBR_NET_VIA) || n->via == ifindex;
}

/* The same for the network of an address. A function of its own, which spares its callers'
 * stacks.
 */
__fbr_global bool fbr_addr_leads(fbr_addr_arg addr, __u32 ifindex)
{
	struct fbr_net *n = FBR_GIVEN(addr) ? fbr_net_get(FBR_ADDR(addr)) : NULL;

	return n && fbr_net_leads(n, ifindex);
}

/* The same for the network of d, a port or a bridge. */
static __always_inline bool fbr_dev_leads(const struct fbr_dev *d, __u32 ifindex)
{
	fbr_addr ip;

	if (!(d->flags & FBR_DEV_VIA))
		return true;
	ip = fbr_dev_ip(d);
	return fbr_addr_leads(FBR_ARG(ip), ifindex);
}

/* What one port holds, for the quotas */
struct fbr_quota {
	__u32 sessions;
	__u32 ports;
	__u32 half;       /* TCP sessions that are not established yet */
	__u32 frags;      /* datagrams whose fragments are passing */
	__u64 refused_at; /* jiffies of the last ICMP error about a refused flow */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_STATS_MAX);
	__type(key, __u32);
	__type(value, struct fbr_quota);
} fbr_quota SEC(".maps");

/* What a device holds, or NULL if the device is gone. */
static __always_inline struct fbr_quota *fbr_quota_get(__u32 ifindex)
{
	struct fbr_dev *d = fbr_dev_get(ifindex);
	__u32 i;

	if (!d)
		return NULL;
	i = d->stats;
	return bpf_map_lookup_elem(&fbr_quota, &i);
}

static __always_inline void fbr_atomic_dec(__u32 *v)
{
	__sync_fetch_and_add(v, (__u32)-1);
}

#endif
