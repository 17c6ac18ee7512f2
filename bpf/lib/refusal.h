/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which refusals of the host may leave: RSTs and ICMP port unreachables for a port of the
 * NAT range.
 *
 * Such a port belongs to a mapping, or may soon belong to one. A packet for it that fits no
 * session reaches the host's stack, where nobody listens, and the stack refuses it. That
 * answer must not leave: a container may be about to ask the sender for this very packet
 * (RFC 5382 REQ-4). A REJECT rule makes the same answer, but deliberately.
 *
 * fbr_input tells the two apart. It runs after every rule of INPUT, and notes in fbr_passed
 * the packets that got through: only the stack answers those. A rule answers earlier. Each
 * note is good for one answer. fbr_passed is an array, so another packet may overwrite a
 * note: one on another CPU, or one that comes while the answer waits for its next hop. Then
 * an answer leaves that should not.
 *
 * If the host or a neighbour NAT has used a port since a mapping last had it, the host
 * answers for it. A listener that was closed refuses like any other.
 */
#ifndef FBR_REFUSAL_H
#define FBR_REFUSAL_H

#include "clock.h"
#include "extport.h"
#include "flow.h"
#include "kctx.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "publish.h"
#include "socket.h"

#define FBR_PASSED_MAX       4096 /* of fbr_passed */
#define FBR_LOOPBACK_IFINDEX 1    /* of lo, in every network namespace */

/* Packets for ports of the NAT range that INPUT let through, by a hash that is also the value. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_PASSED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} fbr_passed SEC(".maps");

/* Whether the host answers for a port: it used the port last, or has lately used it beside
 * a mapping.
 */
static __always_inline bool fbr_port_of_host(const struct fbr_nport *np)
{
	return np->noted_at && (!np->refs || fbr_port_noted(np, fbr_now()));
}

/* Whether anybody on this host answers for a packet that comes in as k. Its destination
 * port is in the NAT range.
 */
__fbr_global bool fbr_port_known(struct __sk_buff *skb, const struct fbr_flow_key *k)
{
	if (!k)
		return false;

	struct fbr_nport *np = fbr_nport_at(k->proto, k->dport);

	return (np && fbr_port_of_host(np)) || fbr_host_receives(skb, k);
}

/* Whether this is the host's RST to a segment that no socket wanted: its sequence number is
 * 0 if it answers a SYN, and it has no ACK otherwise (RFC 9293 section 3.10.7.1). A RST
 * that ends a connection of the host has an ACK and a sequence number.
 */
static __always_inline bool fbr_answer_rst(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	__be32 seq;

	if (!(p->tcp_flags & TCP_RST) || skb->ingress_ifindex)
		return false;
	if (!(p->tcp_flags & TCP_ACK))
		return true;
	return !bpf_skb_load_bytes(skb, p->l4 + offsetof(struct tcphdr, seq), &seq, sizeof(seq)) &&
	       seq == 0;
}

/* What fbr_passed holds for a packet that comes in as k. Never 0. */
static __always_inline __u32 fbr_passed_mark(const struct fbr_flow_key *k)
{
	return fbr_flow_hash(k) ?: 1;
}

static __always_inline __u32 *fbr_passed_at(__u32 mark)
{
	__u32 i = mark % FBR_PASSED_MAX;

	return bpf_map_lookup_elem(&fbr_passed, &i);
}

/* Whether INPUT let a packet through that came in as k. Uses the note up. */
__fbr_global bool fbr_passed_take(const struct fbr_flow_key *k)
{
	if (!k)
		return false;

	__u32 mark = fbr_passed_mark(k), *at = fbr_passed_at(mark);

	return at && __sync_val_compare_and_swap(at, mark, 0) == mark;
}

/* Whether a packet that reaches the host's own sockets is for a published port that only the
 * kernel's NAT leads to the container (SCTP): a client that is not allowed, or the rules are
 * gone. No socket of the host answers it. The host itself may have the port by loopback.
 */
static __always_inline bool fbr_input_published(struct bpf_nf_ctx *ctx, fbr_addr daddr,
						__be16 dport)
{
	struct fbr_conf *c = fbr_conf_get();

	return c && c->published && ctx->skb->skb_iif != FBR_LOOPBACK_IFINDEX &&
	       fbr_pub_get(daddr, dport, IPPROTO_SCTP);
}

/* Notes a packet that INPUT lets through to a port of the NAT range. Drops one for a
 * published port that is the container's.
 */
static __always_inline int fbr_input_note(struct bpf_nf_ctx *ctx)
{
	struct {
		fbr_ip ip;
		struct l4ports ports;
	} h;
	struct fbr_flow_key k;
	struct bpf_dynptr pkt;
	struct fbr_nport *np;
	__u32 mark, *at;

	if (bpf_dynptr_from_skb(ctx->skb, 0, &pkt) || bpf_dynptr_read(&h, sizeof(h), &pkt, 0, 0))
		return NF_ACCEPT;
	if (h.ip.protocol != IPPROTO_TCP && h.ip.protocol != IPPROTO_UDP &&
	    h.ip.protocol != IPPROTO_SCTP)
		return NF_ACCEPT;
	if (fbr_ip_longer(&h.ip) &&
	    bpf_dynptr_read(&h.ports, sizeof(h.ports), &pkt, fbr_ip_len(&h.ip), 0))
		return NF_ACCEPT;
	if (h.ip.protocol == IPPROTO_SCTP)
		return fbr_input_published(ctx, h.ip.daddr, h.ports.dport) ? NF_DROP : NF_ACCEPT;
	np = fbr_nport_at(h.ip.protocol, h.ports.dport);
	if (!np || fbr_port_of_host(np))
		return NF_ACCEPT;
	fbr_key_fill(&k, h.ip.saddr, h.ip.daddr, h.ports.sport, h.ports.dport, h.ip.protocol);
	mark = fbr_passed_mark(&k);
	at = fbr_passed_at(mark);
	if (at)
		*at = mark;
	return NF_ACCEPT;
}

#endif
