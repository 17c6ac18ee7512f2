/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The kernel types that fastbr uses, written by hand, so that the build needs neither
 * kernel headers nor a generated vmlinux.h.
 *
 * There are two kinds: UAPI types, whose layout never changes, and kernel types marked
 * preserve_access_index, whose fields CO-RE relocates at load.
 */
#ifndef FBR_KERNEL_H
#define FBR_KERNEL_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef signed short __s16;
typedef unsigned int __u32;
typedef signed int __s32;
typedef unsigned long long __u64;
typedef signed long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __le16;
typedef __u32 __le32;
typedef __u64 __le64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;

#define true   1
#define false  0
#define NULL   ((void *)0)

#define EEXIST 17
#define ENOENT 2
#define E2BIG  7

/* enum bpf_map_type, include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_QUEUE = 22,
	BPF_MAP_TYPE_SK_STORAGE = 24,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
};

enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_SK_STORAGE_GET_F_CREATE = 1U << 0,
	BPF_F_MMAPABLE = 1U << 10,
	BPF_F_RECOMPUTE_CSUM = 1ULL << 0,
	BPF_F_PSEUDO_HDR = 1ULL << 4,
	BPF_F_MARK_MANGLED_0 = 1ULL << 5,
	BPF_F_CURRENT_NETNS = -1L,
};

enum {
	BPF_FIB_LOOKUP_DIRECT = 1U << 0, /* in one table: main, or that of its VRF */
	BPF_FIB_LOOKUP_OUTPUT = 1U << 1,
	BPF_FIB_LOOKUP_SKIP_NEIGH = 1U << 2,
	BPF_FIB_LOOKUP_SRC = 1U << 4, /* 6.7 */
};

/* skb->pkt_type */
#define PACKET_HOST                   0
#define PACKET_BROADCAST              1
#define PACKET_MULTICAST              2
#define PACKET_OTHERHOST              3

#define BPF_F_INGRESS                 1 /* of bpf_redirect */
#define BPF_FIB_LKUP_RET_UNREACHABLE  2
#define BPF_FIB_LKUP_RET_NOT_FWDED    4 /* local, or no unicast address */
#define BPF_FIB_LKUP_RET_FWD_DISABLED 5 /* the device's "forwarding" is 0: no answer */
#define BPF_FIB_LKUP_RET_NO_NEIGH     7 /* the kernel would have to ask for the next hop */

/* Return values of tcx programs (enum tcx_action_base). NEXT lets the hook's other programs
 * run; PASS would not.
 */
enum {
	TCX_NEXT = -1,
	TCX_DROP = 2,
	TCX_REDIRECT = 7,
};

/* Return values of netfilter programs. */
enum {
	NF_DROP = 0,
	NF_ACCEPT = 1,
};

#define CLOCK_MONOTONIC 1

/* Return values of XDP programs. */
enum {
	XDP_DROP = 1,
	XDP_PASS = 2,
	XDP_REDIRECT = 4,
};

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
	__u8 tstamp_type;
	__u32 : 24;
	__u64 hwtstamp;
};

struct in6_addr {
	__be32 word[4];
};

struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr;
			__be32 daddr;
			__be16 sport;
			__be16 dport;
		} ipv4;
		struct {
			__be32 saddr[4];
			__be32 daddr[4];
			__be16 sport;
			__be16 dport;
		} ipv6;
	};
};

struct bpf_fib_lookup {
	__u8 family;
	__u8 l4_protocol;
	__be16 sport;
	__be16 dport;
	union {
		__u16 tot_len;    /* in */
		__u16 mtu_result; /* out */
	};
	__u32 ifindex;
	union {
		__u8 tos;
		__be32 flowinfo;
		__u32 rt_metric;
	};
	union {
		__be32 ipv4_src;
		struct in6_addr ipv6_src;
	};
	union {
		__be32 ipv4_dst;
		struct in6_addr ipv6_dst;
	};
	union {
		struct {
			__be16 h_vlan_proto;
			__be16 h_vlan_TCI;
		};
		__u32 tbid;
	};
	__u8 smac[6];
	__u8 dmac[6];
};

struct bpf_spin_lock {
	__u32 val;
};

struct bpf_timer {
	__u64 opaque[2];
} __attribute__((aligned(8)));

struct bpf_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* Wire formats. */
#define ETH_ALEN         6
#define ETH_HLEN         14
#define ETH_ZLEN         60 /* shortest frame on the wire, without its check sequence */
#define ETH_P_IP         0x0800
#define ETH_P_ARP        0x0806
#define ETH_P_IPV6       0x86dd
#define VLAN_VID_MASK    0x0fff /* of vlan_tci */

#define IPPROTO_ICMP     1
#define IPPROTO_TCP      6
#define IPPROTO_UDP      17
#define IPPROTO_HOPOPTS  0
#define IPPROTO_ROUTING  43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6   58
#define IPPROTO_SCTP     132
#define IPPROTO_DSTOPTS  60

#define AF_INET          2
#define AF_INET6         10

struct ethhdr {
	__u8 h_dest[ETH_ALEN];
	__u8 h_source[ETH_ALEN];
	__be16 h_proto;
};

struct arphdr {
	__be16 ar_hrd;
	__be16 ar_pro;
	__u8 ar_hln;
	__u8 ar_pln;
	__be16 ar_op;
	__u8 ar_sha[ETH_ALEN];
	__be32 ar_spa;
	__u8 ar_tha[ETH_ALEN];
	__be32 ar_tpa;
} __attribute__((packed));

struct iphdr {
	__u8 ihl : 4, version : 4;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

#define IP_DF      0x4000
#define IP_MF      0x2000
#define IP_OFFMASK 0x1fff

struct l4ports {
	__be16 sport;
	__be16 dport;
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff_res; /* data offset in the upper four bits */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

#define ICMP_ECHOREPLY        0
#define ICMP_DEST_UNREACH     3
#define ICMP_PORT_UNREACH     3  /* code */
#define ICMP_PKT_FILTERED     13 /* code */
#define ICMP_SOURCE_QUENCH    4
#define ICMP_REDIRECT         5
#define ICMP_ECHO             8
#define ICMP_TIME_EXCEEDED    11
#define ICMP_PARAMETERPROB    12

#define ICMPV6_DEST_UNREACH   1
#define ICMPV6_ADM_PROHIBITED 1   /* code */
#define ICMPV6_PORT_UNREACH   4   /* code */
#define ICMPV6_ECHO           128 /* types below are errors */
#define ICMPV6_ECHOREPLY      129
#define ICMPV6_REDIRECT       137

/* A global function is verified once, by itself, not at every call. This keeps the
 * programs below the verifier's limit. A global function must return a number. For all the
 * verifier knows, its pointer arguments may be NULL, so it checks them first.
 */
#define __fbr_global          __attribute__((noinline))

/* Kernel types, relocated at load. */
#define __core                __attribute__((preserve_access_index))

struct Qdisc_class_ops {
	void *graft;
	void *tcf_block;
} __core;

struct Qdisc_ops {
	const struct Qdisc_class_ops *cl_ops;
} __core;

struct Qdisc {
	const struct Qdisc_ops *ops;
	__u32 handle;
} __core;

struct list_head {
	struct list_head *next;
};

/* A device above another one. */
struct netdev_adjacent {
	struct net_device *dev;
	bool master;
	struct list_head list;
} __core;

struct bpf_prog_aux {
	char name[16];
} __core;

struct bpf_prog {
	struct bpf_prog_aux *aux;
} __core;

struct bpf_mprog_fp {
	struct bpf_prog *prog;
} __core;

#define BPF_MPROG_MAX 64

struct bpf_mprog_entry {
	struct bpf_mprog_fp fp_items[BPF_MPROG_MAX];
	struct bpf_mprog_bundle *parent;
} __core;

struct bpf_mprog_bundle {
	struct bpf_mprog_entry a;
} __core;

struct tcx_entry {
	struct mini_Qdisc *miniq;
	struct bpf_mprog_bundle bundle;
} __core;

struct rb_node {
	struct rb_node *rb_right;
	struct rb_node *rb_left;
} __core;

struct rb_root {
	struct rb_node *rb_node;
} __core;

struct ctl_table {
	const char *procname;
	void *data;
} __core;

struct ctl_node;

struct ctl_table_header {
	const struct ctl_table *ctl_table;
	struct ctl_node *node;
} __core;

struct ctl_node {
	struct rb_node node;
	struct ctl_table_header *header;
} __core;

struct ctl_dir {
	struct ctl_table_header header;
	struct rb_root root;
} __core;

struct ctl_table_set {
	struct ctl_dir dir;
} __core;

struct netns_ipv4 {
	struct ipv4_devconf *devconf_all;
} __core;

/* Who hooked himself in, of struct nf_hook_ops */
enum nf_hook_ops_type { NF_HOOK_OP_UNDEFINED };

struct nf_hook_ops {
	enum nf_hook_ops_type hook_ops_type : 8;
	int priority;
} __core;

struct nf_hook_entry {
	void *hook;
} __core;

/* The hooks in their order; behind them a struct nf_hook_ops * for each. */
struct nf_hook_entries {
	__u16 num_hook_entries;
	struct nf_hook_entry hooks[1];
} __core;

#define NF_BR_PRE_ROUTING   0
#define NF_BR_FORWARD       2
#define NF_BR_POST_ROUTING  4
#define NF_BR_NUMHOOKS      5

/* Priorities there */
#define NF_BR_PRI_BRNF      0
#define NF_BR_PRI_LAST      0x7fffffff

#define NF_INET_PRE_ROUTING 0
#define NF_INET_NUMHOOKS    5

/* Priorities there */
#define NF_IP_PRI_CONNTRACK (-200)
#define NF_IP_PRI_NAT_DST   (-100)

struct netns_nf {
	struct nf_hook_entries *hooks_ipv4[NF_INET_NUMHOOKS];
	struct nf_hook_entries *hooks_ipv6[NF_INET_NUMHOOKS];
	struct nf_hook_entries *hooks_bridge[NF_BR_NUMHOOKS];
} __core;

struct ipv6_devconf {
	__s32 forwarding;
} __core;

struct netns_ipv6 {
	struct ipv6_devconf *devconf_all;
} __core;

struct net {
	__u64 net_cookie;
	struct netns_nf nf;
	struct netns_ipv4 ipv4;
	struct netns_ipv6 ipv6;
	struct ctl_table_set sysctls;
} __core;

typedef struct {
	struct net *net;
} possible_net_t;

struct net_bridge {
	unsigned long options;
} __core;

struct net_bridge_port {
	struct net_bridge *br;
} __core;

enum net_bridge_opts { BROPT_NF_CALL_IPTABLES, BROPT_NF_CALL_IP6TABLES };

struct net_device {
	possible_net_t nd_net;
	void *rx_handler_data; /* of a bridge's port: struct net_bridge_port */
	int ifindex;
	unsigned int mtu;
	const unsigned char *dev_addr;
	struct Qdisc *qdisc;
	struct bpf_mprog_entry *tcx_ingress;
	struct bpf_mprog_entry *tcx_egress;
	struct {
		struct list_head upper; /* struct netdev_adjacent, a master first */
	} adj_list;
	struct nf_hook_entries *nf_hooks_ingress;
	struct nf_hook_entries *nf_hooks_egress;
} __core;

struct inet_skb_parm { /* in sk_buff.cb while IPv4 has the packet */
	__u16 flags;
} __core;

#define IPSKB_FORWARDED 1 /* of inet_skb_parm.flags */

struct neigh_table {
	int family;
} __core;

/* What the host knows of the hardware address of a neighbour, on a link. */
struct neighbour {
	struct neigh_table *tbl;
	__u8 nud_state;
	struct net_device *dev;
	unsigned char ha[32];
	__u8 primary_key[]; /* its IP address */
} __core;

/* nud_state: the hardware address may be used (NUD_VALID of include/net/neighbour.h) */
#define NUD_VALID 0xde

struct rtable {
	__u8 rt_gw_family; /* 0: no gateway, the destination is on the link */
	union {
		__be32 rt_gw4;
		struct in6_addr rt_gw6;
	};
} __core;

struct dst_entry { /* a route */
	unsigned long _metrics;
} __core;

#define DST_METRICS_FLAGS 3UL /* of dst_entry._metrics; the rest is where they are */
#define RTAX_MTU          2   /* the second of them */

struct rt6_info {
	struct in6_addr rt6i_gateway;
	__u32 rt6i_flags;
} __core;

#define RTF_GATEWAY   2 /* of rt6_info.rt6i_flags: the destination is not on the link */

#define SKB_DST_NOREF 1UL /* of skb->_skb_refdst; the rest is the packet's route */

struct sk_buff {
	struct net_device *dev;
	unsigned long _skb_refdst;
	char cb[48];
	unsigned char *head;
	unsigned char *data;
	unsigned int end; /* of the linear part, where struct skb_shared_info begins; from head */
	__u16 csum_start; /* from head */
	__u16 csum_offset;
	int skb_iif;         /* the device it came in by; 0: made here */
	unsigned long _nfct; /* only where the kernel has connection tracking */
	__u8 ip_summed : 2;
	__u32 hash;
} __core;

#define NFCT_PTRMASK    (~7UL) /* of skb->_nfct: the entry; the bits below are: */
/* enum ip_conntrack_info */
#define IP_CT_NEW       2
#define IP_CT_IS_REPLY  3 /* and IP_CT_RELATED_REPLY after it */
#define IP_CT_UNTRACKED 7

struct skb_shared_info {
	unsigned int gso_type;
} __core;

/* The kind of a super-packet, in skb_shared_info.gso_type. The other bits say how to segment
 * it.
 */
#define SKB_GSO_KINDS        0x3eff1
#define SKB_GSO_TCPV4        (1 << 0)
#define SKB_GSO_TCPV6        (1 << 4)
#define SKB_GSO_UDP_L4       (1 << 17)

/* skb->ip_summed, include/linux/skbuff.h */
#define CHECKSUM_NONE        0
#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_COMPLETE    2
#define CHECKSUM_PARTIAL     3

struct ipv4_devconf {
	int data[1]; /* IPV4_DEVCONF_FORWARDING is 1, and the first has index 0 */
} __core;

struct nf_hook_state {
	struct net_device *in;
	struct net_device *out;
	struct net *net;
} __core;

struct xdp_rxq_info {
	struct net_device *dev;
} __core;

struct xdp_buff {
	struct xdp_rxq_info *rxq;
} __core;

struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} __core;

/* Where extensions of a struct nf_conn are, from this; 0: there is none */
struct nf_ct_ext {
	__u8 offset[1]; /* NF_CT_EXT_HELPER is the first */
} __core;

struct nf_conn_help {
	void *helper;
} __core;

union nf_inet_addr { /* kfuncs take all of it */
	__u32 all[4];
	__be32 ip;
	struct in6_addr in6;
};

union nf_conntrack_man_proto {
	__be16 all;
} __core;

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
} __core;

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
} __core;

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} __core;

struct ip_ct_tcp {
	__u8 state; /* enum tcp_conntrack */
} __core;

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __core;

struct nf_conn {
	unsigned long status;
	struct nf_conntrack_tuple_hash tuplehash[2]; /* by enum ip_conntrack_dir */
	struct nf_ct_ext *ext;
	union nf_conntrack_proto proto;
} __core;

struct nf_conn___init { /* not entered yet */
	struct nf_conn ct;
};

#define IPS_CONFIRMED    0x8  /* of nf_conn.status: entered */
#define IPS_NAT_MASK     0x30 /* source or destination is translated */
#define IPS_SRC_NAT      0x10 /* the source alone: a rule that masquerades */
#define IPS_DST_NAT      0x20 /* the destination alone: a DNAT rule */
#define IPS_SRC_NAT_DONE 0x80 /* whether to translate the source has been decided */

enum nf_nat_manip_type { NF_NAT_MANIP_SRC, NF_NAT_MANIP_DST };

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned char skc_ipv6only : 1;
	struct in6_addr skc_v6_daddr;
} __core;

struct sock {
	struct sock_common __sk_common;
} __core;

/* The kernel's own struct bpf_sock_addr. */
struct bpf_sock_addr_kern {
	struct sock *sk;
} __core;

struct udp_sock;

/* The contexts of iterators over all sockets of a network namespace. */
struct bpf_iter__tcp {
	struct sock_common *sk_common;
} __core;

struct bpf_iter__udp {
	struct udp_sock *udp_sk;
} __core;

struct bpf_sock;

/* The context of cgroup programs that see the address of a system call. user_port is in
 * network byte order, in the low 16 bits.
 */
struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4;
	__be32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__be32 msg_src_ip4;
	__be32 msg_src_ip6[4];
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

struct sockaddr_in {
	__u16 sin_family;
	__be16 sin_port;
	__be32 sin_addr;
	__u8 pad[8];
};

struct sockaddr_in6 {
	__u16 sin6_family;
	__be16 sin6_port;
	__be32 sin6_flowinfo;
	__be32 sin6_addr[4];
	__u32 sin6_scope_id;
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port;
	__be16 dst_port;
	__u16 : 16;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};

struct bpf_ct_opts___12 {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

#endif
