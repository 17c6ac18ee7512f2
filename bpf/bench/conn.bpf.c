// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* TCP connections without sockets, so that two CPUs can open many thousands a second
 * through whatever is between client and server. A connection has eight segments:
 * handshake, four bytes each way, close by the client.
 *
 * The generator writes the client's SYNs, as in pps.bpf.c. If a port's turn comes again
 * before its connection is over, it repeats the client's last segment. Every other segment
 * answers one that has arrived. Each end keeps the state of each port, and counts what it
 * did not expect.
 */
#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "fold.h"

char _license[] SEC("license")
= "Dual BSD/GPL";

#define TCP_PSH    0x08
#define PORTS      65536
#define SERVER_ISN 1000

/* MAC addresses of the client and of its gateway. */
volatile const __u8 cfg_client_mac[ETH_ALEN];
volatile const __u8 cfg_gateway_mac[ETH_ALEN];
/* Network byte order. */
volatile const __be32 cfg_client;
volatile const __be32 cfg_server;
volatile const __be16 cfg_server_port;
/* The client's ports, host byte order. They are used in turn, then again. */
volatile const __u16 cfg_first_port;
volatile const __u32 cfg_ports;
/* The client's eth0. */
volatile const __u32 cfg_ifindex;

/* How many connections to open. */
volatile const __u64 cfg_total;

/* One CPU generates. */
static __u32 at_port;
/* Connections begun; completed, as the client sees it; closed by the client, as the server
 * sees it. Segments sent again.
 */
__u64 begun, completed, served, repeated;
/* SYNs from a port whose last connection the client had not closed yet. Segments that did
 * not fit the state of their port.
 */
__u64 unfinished, unexpected;

/* The state of a port's connection: the last segment of the client. */
enum conn_step { CONN_NONE, CONN_SYN, CONN_OPEN, CONN_DATA, CONN_FIN };

struct conn {
	__u32 isn; /* the client's */
	enum conn_step step;
};

struct conn_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, struct conn);
};

struct conn_map fbr_conn_client SEC(".maps"), fbr_conn_server SEC(".maps");

struct segment {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
	__u32 payload;
} __attribute__((packed));

#define SEGMENT_EMPTY (sizeof(struct segment) - sizeof(__u32))

/* Fills in everything but MACs, addresses and ports. Returns the frame's length. */
static __always_inline __u32 complete(struct segment *s, __u32 seq, __u32 ack, __u8 flags)
{
	__u32 len = sizeof(struct tcphdr) + (flags & TCP_PSH ? sizeof(s->payload) : 0);
	struct {
		__be32 saddr, daddr;
		__be16 proto, len;
	} pseudo = { s->ip.saddr, s->ip.daddr, bpf_htons(IPPROTO_TCP), bpf_htons(len) };

	s->eth.h_proto = bpf_htons(ETH_P_IP);
	s->ip.version = 4;
	s->ip.ihl = 5;
	s->ip.tot_len = bpf_htons(sizeof(s->ip) + len);
	s->ip.frag_off = bpf_htons(IP_DF);
	s->ip.ttl = 64;
	s->ip.protocol = IPPROTO_TCP;
	s->ip.check = ~fold(bpf_csum_diff(NULL, 0, (void *)&s->ip, sizeof(s->ip), 0));
	s->tcp.seq = bpf_htonl(seq);
	s->tcp.ack_seq = bpf_htonl(ack);
	s->tcp.doff_res = sizeof(s->tcp) / 4 << 4;
	s->tcp.flags = flags;
	s->tcp.window = bpf_htons(0xffff);
	s->payload = 0; /* adds nothing to the sum */
	s->tcp.check =
		~fold(bpf_csum_diff(NULL, 0, (void *)&s->tcp, sizeof(s->tcp),
				    bpf_csum_diff(NULL, 0, (void *)&pseudo, sizeof(pseudo), 0)));
	return sizeof(s->eth) + sizeof(s->ip) + len;
}

static __always_inline void copy_mac(__u8 *to, const volatile __u8 *from)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		to[i] = from[i];
}

/* The client's last segment of the connection c. Returns its length. */
static __always_inline __u32 client_segment(struct segment *s, const struct conn *c)
{
	switch (c->step) {
	case CONN_DATA:
		return complete(s, c->isn + 1, SERVER_ISN + 1, TCP_PSH | TCP_ACK);
	case CONN_FIN:
		return complete(s, c->isn + 5, SERVER_ISN + 5, TCP_FIN | TCP_ACK);
	default:
		return complete(s, c->isn, 0, TCP_SYN);
	}
}

SEC("xdp")
int fbr_conn_generate(struct xdp_md *ctx)
{
	struct segment *frame = (void *)(long)ctx->data, s = {};
	__u32 port = cfg_first_port + at_port;
	struct conn *c = bpf_map_lookup_elem(&fbr_conn_client, &port);

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end || !c)
		return XDP_DROP;
	if (++at_port >= cfg_ports)
		at_port = 0;
	if (c->step != CONN_NONE) {
		repeated++;
	} else if (begun < cfg_total) {
		begun++;
		c->isn = begun << 8;
		c->step = CONN_SYN;
	} else {
		return XDP_DROP;
	}
	copy_mac(s.eth.h_source, cfg_client_mac);
	copy_mac(s.eth.h_dest, cfg_gateway_mac);
	s.ip.saddr = cfg_client;
	s.ip.daddr = cfg_server;
	s.tcp.source = bpf_htons(port);
	s.tcp.dest = cfg_server_port;
	client_segment(&s, c);
	*frame = s; /* without a payload four bytes too many: padding */
	return XDP_PASS;
}

/* lo of the client. */
SEC("tcx/ingress")
int fbr_conn_send(struct __sk_buff *skb)
{
	struct segment *s = (void *)(long)skb->data;

	if ((void *)(s + 1) > (void *)(long)skb->data_end ||
	    s->eth.h_proto != bpf_htons(ETH_P_IP) || s->ip.daddr != cfg_server)
		return TCX_NEXT;
	return bpf_redirect(cfg_ifindex, 0);
}

/* Turns a received segment into the answer to it. */
static __always_inline int answer(struct __sk_buff *skb, const struct segment *in, __u32 seq,
				  __u32 ack, __u8 flags)
{
	struct segment s = {};
	__u32 len;

	copy_mac(s.eth.h_source, in->eth.h_dest);
	copy_mac(s.eth.h_dest, in->eth.h_source);
	s.ip.saddr = in->ip.daddr;
	s.ip.daddr = in->ip.saddr;
	s.tcp.source = in->tcp.dest;
	s.tcp.dest = in->tcp.source;
	len = complete(&s, seq, ack, flags);
	if (bpf_skb_change_tail(skb, len, 0))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &s, flags & TCP_PSH ? sizeof(s) : SEGMENT_EMPTY,
				   BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int surprise(void)
{
	__sync_fetch_and_add(&unexpected, 1);
	return TCX_DROP;
}

/* Copies a segment between client and server. False if it is something else. */
static __always_inline bool read(struct __sk_buff *skb, struct segment *s)
{
	return !bpf_skb_load_bytes(skb, 0, s, SEGMENT_EMPTY) &&
	       s->eth.h_proto == bpf_htons(ETH_P_IP) && s->ip.protocol == IPPROTO_TCP;
}

/* eth0 of the client. */
SEC("tcx/ingress")
int fbr_conn_client_in(struct __sk_buff *skb)
{
	struct segment s;
	struct conn *c;
	__u32 port;
	int err = 0;

	if (!read(skb, &s) || s.ip.saddr != cfg_server || s.tcp.source != cfg_server_port)
		return TCX_NEXT;
	port = bpf_ntohs(s.tcp.dest);
	c = bpf_map_lookup_elem(&fbr_conn_client, &port);
	if (!c)
		return TCX_DROP;
	switch (s.tcp.flags) {
	case TCP_SYN | TCP_ACK:
		if (c->step != CONN_SYN || bpf_ntohl(s.tcp.ack_seq) != c->isn + 1)
			return surprise();
		c->step = CONN_DATA;
		err = answer(skb, &s, c->isn + 1, SERVER_ISN + 1, TCP_ACK) ?:
		      bpf_clone_redirect(skb, skb->ifindex, 0) ?:
		      answer(skb, &s, c->isn + 1, SERVER_ISN + 1, TCP_PSH | TCP_ACK);
		break;
	case TCP_PSH | TCP_ACK:
		if (c->step != CONN_DATA || bpf_ntohl(s.tcp.ack_seq) != c->isn + 5)
			return surprise();
		c->step = CONN_FIN;
		err = answer(skb, &s, c->isn + 5, SERVER_ISN + 5, TCP_FIN | TCP_ACK);
		break;
	case TCP_FIN | TCP_ACK:
		if (c->step != CONN_FIN || bpf_ntohl(s.tcp.ack_seq) != c->isn + 6)
			return surprise();
		c->step = CONN_NONE;
		__sync_fetch_and_add(&completed, 1);
		err = answer(skb, &s, c->isn + 6, SERVER_ISN + 6, TCP_ACK);
		break;
	default:
		return surprise();
	}
	return err ? TCX_DROP : bpf_redirect(skb->ifindex, 0);
}

/* Whether the client may send this segment next, or again, on connection c. If so, updates c. */
static __always_inline bool expected(struct conn *c, __u32 seq, __u8 flags)
{
	enum conn_step step = c->step;

	switch (flags) {
	case TCP_SYN:
		if ((step == CONN_OPEN || step == CONN_DATA) || (step == CONN_SYN && seq != c->isn))
			__sync_fetch_and_add(&unfinished, 1);
		c->isn = seq;
		c->step = CONN_SYN;
		return true;
	case TCP_ACK:
		if (step == CONN_FIN && seq == c->isn + 6)
			c->step = CONN_NONE;
		else if (step == CONN_SYN && seq == c->isn + 1)
			c->step = CONN_OPEN;
		else
			return false;
		return true;
	case TCP_PSH | TCP_ACK:
		if (step < CONN_SYN || step > CONN_DATA || seq != c->isn + 1)
			return false;
		c->step = CONN_DATA;
		return true;
	case TCP_FIN | TCP_ACK:
		if (step < CONN_DATA || seq != c->isn + 5)
			return false;
		c->step = CONN_FIN;
		if (step == CONN_DATA)
			__sync_fetch_and_add(&served, 1);
		return true;
	default:
		return false;
	}
}

/* eth0 of the server. */
SEC("tcx/ingress")
int fbr_conn_server_in(struct __sk_buff *skb)
{
	struct segment s;
	struct conn *c;
	__u32 port, seq;
	int err;

	if (!read(skb, &s) || s.ip.daddr != cfg_server || s.tcp.dest != cfg_server_port)
		return TCX_NEXT;
	port = bpf_ntohs(s.tcp.source);
	seq = bpf_ntohl(s.tcp.seq);
	c = bpf_map_lookup_elem(&fbr_conn_server, &port);
	if (!c || !expected(c, seq, s.tcp.flags))
		return surprise();
	switch (s.tcp.flags) {
	case TCP_SYN:
		err = answer(skb, &s, SERVER_ISN, seq + 1, TCP_SYN | TCP_ACK);
		break;
	case TCP_PSH | TCP_ACK:
		err = answer(skb, &s, SERVER_ISN + 1, seq + 4, TCP_PSH | TCP_ACK);
		break;
	case TCP_FIN | TCP_ACK:
		err = answer(skb, &s, SERVER_ISN + 5, seq + 1, TCP_FIN | TCP_ACK);
		break;
	default:
		return TCX_DROP;
	}
	return err ? TCX_DROP : bpf_redirect(skb->ifindex, 0);
}
