/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a packet must look like to take the fast path.
 *
 * It is an IP packet without options or extension headers and not a fragment. Its header
 * checksum is right, its TTL is above 1, and its length fields agree with the frame. It
 * carries TCP with ACK and without SYN, FIN and RST, or UDP, or an ICMP echo. Everything else
 * goes to the kernel, which may trim or drop it, and whose connection tracking calls such
 * headers invalid.
 */
#ifndef FBR_FAST_H
#define FBR_FAST_H

#include "../include/bpf/bpf_core_read.h"
#include "../include/bpf/bpf_endian.h"
#include "kctx.h"
#include "nat.h"

/* Makes the headers linear that are read in place: L2, IP, TCP, as far as the packet has
 * them. Of SCTP no more than the IP header is read, and no more may be made linear: a
 * super-packet of SCTP is cut where its fragments begin (GSO_BY_FRAGS). Here and below, l2
 * is the length of the L2 header in bytes: ETH_HLEN or 0.
 */
static __always_inline void fbr_pull_headers(struct __sk_buff *skb, const __u32 l2)
{
	const __u32 want = l2 + sizeof(fbr_ip) + sizeof(struct tcphdr);
	__u32 have = skb->data_end - skb->data;
	fbr_ip *ip;

	if (have >= want || have >= skb->len)
		return;
	ip = (void *)(long)skb->data + l2;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end || ip->protocol != IPPROTO_SCTP)
		bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
}

/* The number of bytes after an IP header without options. 0 if the header and the frame
 * disagree about the length: ip_rcv() drops what is cut short and trims what is longer.
 *
 * Two kinds of packet may disagree: short frames, which are padded on the wire and trimmed
 * by the container, and super-packets of BIG TCP, whose length field is 0. frame is the
 * frame's length in bytes. skb is NULL in XDP, which sees no super-packets.
 */
static __always_inline __u32 fbr_l4_room(struct __sk_buff *skb, __u32 frame, const fbr_ip *ip,
					 const __u32 l2, bool out)
{
	__u32 have = frame - l2, len = fbr_ip_total(ip);

	if (len != have) {
		if (fbr_ip_open(ip) && skb && skb->gso_size && ip->protocol == IPPROTO_TCP)
			len = have;
		else if (out || !l2 || len > have || frame > ETH_ZLEN)
			return 0;
	}
	return len > sizeof(*ip) ? len - sizeof(*ip) : 0;
}

/* The key of a packet; ports holds both ports as in the L4 header. It is written in
 * stores of eight bytes. The map reads the key in words and compares it in double words,
 * and a load that spans several earlier stores waits until they have left the store buffer.
 */
static __always_inline void fbr_fast_key(struct fbr_flow_key *k, const fbr_ip *ip, __u32 ports)
{
	__u64 *words = (__u64 *)k;
	__u32 i;

	for (i = 0; i < FBR_KEY_WORDS - 1; i++)
		words[i] = ((const __u64 *)&ip->saddr)[i];
	words[i] = (__u64)ip->protocol << 32 | ports;
}

/* Fills the key of a packet on its way out of the containers (out) or into them. Returns
 * the length of the L4 header in bytes, or 0 if the packet is not for the fast path. skb
 * and frame are those of fbr_l4_room().
 */
static __always_inline __u32 fbr_fast_parse(struct __sk_buff *skb, __u32 frame, void *data,
					    void *data_end, const __u32 l2, bool out,
					    struct fbr_flow_key *k)
{
	fbr_ip *ip = data + l2;
	void *l4 = ip + 1;
	__u32 room;

	if (l4 > data_end || !fbr_ip_simple(ip))
		return 0;
	room = fbr_l4_room(skb, frame, ip, l2, out);

	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		__u32 hdr;

		if ((void *)(tcp + 1) > data_end ||
		    (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
			return 0;
		fbr_fast_key(k, ip, *(__u32 *)l4);
		hdr = (tcp->doff_res >> 4) * 4;
		return hdr >= sizeof(*tcp) && hdr <= room ? hdr : 0;
	}
	if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > data_end || fbr_sum_missing(udp))
			return 0;
		fbr_fast_key(k, ip, *(__u32 *)l4);
		return room >= sizeof(*udp) && bpf_ntohs(udp->len) == room ? sizeof(*udp) : 0;
	}
	if (ip->protocol == FBR_ICMP) {
		struct icmphdr *icmp = l4;

		if ((void *)(icmp + 1) > data_end || room < sizeof(*icmp) ||
		    icmp->type != (out ? FBR_ICMP_ECHO : FBR_ICMP_ECHOREPLY))
			return 0;
		fbr_fast_key(k, ip, out ? icmp->id : (__u32)icmp->id << 16);
		return sizeof(*icmp);
	}
	return 0;
}

/* Whether the kernel will segment a super-packet as its header says. Its sender may have
 * said otherwise (PACKET_VNET_HDR), and a tunnelled packet is segmented as a tunnel. A
 * packet of BPF_PROG_TEST_RUN says nothing.
 */
static __always_inline bool fbr_cut_as(struct __sk_buff *skb, __u8 proto)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct skb_shared_info *s = bpf_rdonly_cast(
		(void *)k->head + k->end, bpf_core_type_id_kernel(struct skb_shared_info));

	__u32 kind = s->gso_type & SKB_GSO_KINDS;

	return !kind || kind == (proto == IPPROTO_TCP ? FBR_GSO_TCP : SKB_GSO_UDP_L4);
}

/* Whether the packet of protocol proto, or each segment of a super-packet, fits the MTU
 * (bytes, L3).
 */
static __always_inline bool fbr_fits(struct __sk_buff *skb, const __u32 l2, __u8 proto,
				     __u32 l4_len, __u32 mtu)
{
	__u32 gso = skb->gso_size;

	if (gso)
		return gso + sizeof(fbr_ip) + l4_len <= mtu && fbr_cut_as(skb, proto);
	return skb->len - l2 <= mtu;
}

#endif
