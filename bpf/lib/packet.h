/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the kernel's path knows of a packet. */
#ifndef FBR_PACKET_H
#define FBR_PACKET_H

#include "af.h"

enum fbr_l4_kind {
	FBR_L4_NONE = 0, /* no ports: another protocol, a fragment, or cut short */
	FBR_L4_PORTS,    /* TCP, UDP */
	FBR_L4_ECHO_REQ, /* the id is in sport */
	FBR_L4_ECHO_REP, /* the id is in dport */
	FBR_L4_ICMP_ERR,
};

enum fbr_frag_bits {
	FBR_FRAG_MORE = 1,  /* not the last one */
	FBR_FRAG_LATER = 2, /* not the first one: no L4 header */
};

/* An IP packet. Addresses and ports are in network byte order. */
struct fbr_pkt {
	fbr_addr saddr;
	fbr_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 kind;      /* enum fbr_l4_kind */
	__u8 tcp_flags; /* 0 for others */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 frag;    /* enum fbr_frag_bits; 0: whole */
	__u16 l3;     /* offset of the IP header: ETH_HLEN, or 0 on a device without L2 header */
	__u16 l4;     /* offset of the L4 header */
	fbr_ip_id id; /* of the IPv4 header, or of the IPv6 fragment header */
};

#if FBR_AF == 6
/* An IPv6 packet as the checks need it. */
struct fbr_seen {
	fbr_addr saddr;
	fbr_addr daddr;
	__u16 l4;    /* offset of the header behind the extension headers */
	__u32 end;   /* offset of the packet's end, by its own length field */
	__u8 proto;  /* of that header */
	__u8 frag;   /* enum fbr_frag_bits */
	bool pieces; /* there is a fragment header, also in a whole packet */
	__u8 hops;   /* hop limit */
	__u8 type;   /* ICMPv6 type; 0 for others */
};
#endif

/* The offset of the source (src) or destination address of the IP header at l3. */
static __always_inline __u32 fbr_addr_at(__u32 l3, bool src)
{
	return l3 + (src ? offsetof(fbr_ip, saddr) : offsetof(fbr_ip, daddr));
}

#endif
