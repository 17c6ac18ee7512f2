// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Both ends of the benchmark's small packets.
 *
 * The generator writes frames for BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES. They
 * arrive at the sender's loopback device and are sent out of its eth0, as if the sender had
 * made them. The kernel recycles the pages of such frames as their last user left them,
 * perhaps translated. So every byte of every frame is written. The sink counts the frames
 * that arrive, and drops them.
 */
#include "../include/kernel.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "fold.h"

char _license[] SEC("license")
= "Dual BSD/GPL";

#define FRAME_WORDS 16 /* of 4 bytes: 64 bytes, with the Ethernet header */
#define ADDR_WORDS  4  /* of an IPv6 address */

struct fbr_bench_frame {
	__u32 words[FRAME_WORDS];
};

/* A whole frame as in memory, without ports and UDP checksum. */
volatile const struct fbr_bench_frame cfg_frame;
/* One's complement sum of what the UDP checksum covers, without the ports. */
volatile const __u32 cfg_udp_sum;
/* Flows differ in their ports, host byte order: cfg_sports source ports from cfg_sport on,
 * each with cfg_dports destination ports from cfg_dport on.
 */
volatile const __u16 cfg_sport;
volatile const __u32 cfg_sports;
volatile const __u16 cfg_dport;
volatile const __u32 cfg_dports;
/* The sender's eth0. */
volatile const __u32 cfg_ifindex;
/* Offset of the UDP header. */
volatile const __u32 cfg_udp;
/* What the sink counts: frames with this destination address, which has so many words before
 * the UDP header, and with this end of their payload, under a mask.
 */
volatile const struct fbr_bench_addr {
	__u32 words[ADDR_WORDS];
} cfg_daddr;
volatile const __u32 cfg_addr_words;
volatile const __u32 cfg_magic;
volatile const __u32 cfg_magic_mask;

/* One CPU generates. */
static __u32 at_sport, at_dport;
__u64 sent;

struct fbr_bench_headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__u8 payload[22];
} __attribute__((packed));

_Static_assert(sizeof(struct fbr_bench_headers) == sizeof(struct fbr_bench_frame), "64 bytes");

static __always_inline bool marked(const struct fbr_bench_frame *f)
{
	return (f->words[FRAME_WORDS - 1] & cfg_magic_mask) == cfg_magic;
}

/* Writes the frame. NULL if it is too short. */
static __always_inline struct fbr_bench_frame *write_frame(struct xdp_md *ctx)
{
	struct fbr_bench_frame *f = (void *)(long)ctx->data;

	if ((void *)(f + 1) > (void *)(long)ctx->data_end)
		return NULL;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		f->words[i] = cfg_frame.words[i];
	return f;
}

SEC("xdp")
int fbr_bench_generate(struct xdp_md *ctx)
{
	struct fbr_bench_frame *f = write_frame(ctx);
	__u32 sum, at = cfg_udp;
	struct udphdr *udp;

	if (!f || at > sizeof(*f) - sizeof(*udp))
		return XDP_DROP;
	udp = (void *)f + at;
	udp->source = bpf_htons(cfg_sport + at_sport);
	udp->dest = bpf_htons(cfg_dport + at_dport);
	sum = fold(cfg_udp_sum + udp->source + udp->dest);
	udp->check = sum == 0xffff ? 0xffff : ~sum; /* 0 would mean "none" */

	if (++at_sport >= cfg_sports) {
		at_sport = 0;
		if (++at_dport >= cfg_dports)
			at_dport = 0;
	}
	sent++;
	return XDP_PASS;
}

#define FRAGMENT_BYTES 24 /* of payload */

/* Fragments of datagrams that never become complete: the beginning of one, the middle of
 * the next.
 */
SEC("xdp")
int fbr_bench_fragment(struct xdp_md *ctx)
{
	struct fbr_bench_headers *h = (void *)write_frame(ctx);
	struct iphdr ip;

	if (!h)
		return XDP_DROP;
	ip = h->ip;
	ip.tot_len = bpf_htons(sizeof(ip) + FRAGMENT_BYTES);
	ip.id = bpf_htons(sent);
	ip.frag_off = bpf_htons(IP_MF | (sent & 1 ? FRAGMENT_BYTES / 8 : 0));
	ip.check = 0;
	ip.check = ~fold(bpf_csum_diff(NULL, 0, (void *)&ip, sizeof(ip), 0));
	h->ip = ip;
	sent++;
	return XDP_PASS;
}

/* lo of the sender. */
SEC("tcx/ingress")
int fbr_bench_send(struct __sk_buff *skb)
{
	struct fbr_bench_frame *f = (void *)(long)skb->data;

	if ((void *)(f + 1) > (void *)(long)skb->data_end || !marked(f))
		return TCX_NEXT;
	return bpf_redirect(cfg_ifindex, 0);
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} fbr_bench_count SEC(".maps");

SEC("tcx/ingress")
int fbr_bench_sink(struct __sk_buff *skb)
{
	struct fbr_bench_frame *f = (void *)(long)skb->data;
	__u32 zero = 0, i, at = cfg_udp - 4 * cfg_addr_words;
	__u64 *n;

	if ((void *)(f + 1) > (void *)(long)skb->data_end || !marked(f) ||
	    at > sizeof(*f) - sizeof(cfg_daddr))
		return TCX_NEXT;
#pragma unroll
	for (i = 0; i < ADDR_WORDS; i++)
		if (i < cfg_addr_words && *(__u32 *)((void *)f + at + 4 * i) != cfg_daddr.words[i])
			return TCX_NEXT;
	n = bpf_map_lookup_elem(&fbr_bench_count, &zero);
	if (n)
		(*n)++;
	return TCX_DROP;
}
