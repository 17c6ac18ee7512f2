/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMPv6 from a port: neighbour discovery (RFC 4861) about its own addresses only, and none
 * of what only routers say.
 */
#ifndef FBR_ND_H
#define FBR_ND_H

#include "af.h"
#include "../include/bpf/bpf_endian.h"
#include "../include/bpf/bpf_helpers.h"
#include "addr6.h"
#include "allowed.h"
#include "csum.h"
#include "device.h"
#include "ip6.h"
#include "reason.h"

#define FBR_ND_OPTIONS   8 /* options followed before a message is given up */

#define FBR_ND_ROUTER    0x80000000 /* flags of an NA, host byte order */
#define FBR_ND_SOLICITED 0x40000000
#define FBR_ND_OVERRIDE  0x20000000

/* A solicitation or an advertisement, without its options */
struct fbr_nd {
	__u8 type;
	__u8 code;
	__sum16 csum;
	__be32 flags;
	fbr_addr target;
};

/* A link-layer address option */
struct fbr_nd_mac {
	__u8 type; /* 1: the source's, 2: the target's */
	__u8 len;  /* in units of 8 bytes */
	__u8 mac[ETH_ALEN];
};

/* Whether only a router sends a message of this type. */
static __always_inline bool fbr_routers_only(__u8 type)
{
	return type == ICMPV6_RA || type == ICMPV6_REDIRECT || type == ICMPV6_MLD_QUERY ||
	       type == ICMPV6_MRD || type == ICMPV6_MRD_END;
}

/* Whether the options from off on name no MAC address but p's. */
__fbr_global bool fbr_nd_options_own(struct __sk_buff *skb, const struct fbr_dev *p, __u32 off,
				     __u32 end)
{
	struct {
		__u16 pad;
		struct fbr_nd_mac o; /* its MAC address is aligned */
	} __attribute__((aligned(4))) at;
	int i;

	if (!p)
		return false;
	for (i = 0; i < FBR_ND_OPTIONS && off < end; i++) {
		if (off + sizeof(at.o) > end || bpf_skb_load_bytes(skb, off, &at.o, sizeof(at.o)) ||
		    !at.o.len)
			return false;
		if ((at.o.type == 1 || at.o.type == 2) &&
		    (at.o.len != 1 || !fbr_port_has_mac(p, at.o.mac)))
			return false;
		off += at.o.len * 8;
	}
	return off == end;
}

/* Judges an ICMPv6 message of p's. Returns FBR_NONE or the reason to drop it. */
__fbr_global enum fbr_reason fbr_nd_check(struct __sk_buff *skb, const struct fbr_dev *p,
					  const struct fbr_seen *s)
{
	struct fbr_nd m;
	__u32 head;

	if (!p || !s || fbr_routers_only(s->type))
		return FBR_SPOOF_IP;
	if (!fbr_nd_type(s->type))
		return FBR_NONE;
	if (s->pieces || s->hops != 255)
		return FBR_SPOOF_IP; /* RFC 6980 section 5; RFC 4861 section 7.1 */
	head = s->type == ICMPV6_RS ? 8 : sizeof(m);
	if (s->type > ICMPV6_NA)
		return FBR_NONE;
	if (s->l4 + head > s->end || bpf_skb_load_bytes(skb, s->l4, &m, head))
		return FBR_SPOOF_IP;
	if (s->type == ICMPV6_NA) {
		enum fbr_reason why = fbr_may_have(p, &m.target);

		if (why)
			return why;
	}
	return fbr_nd_options_own(skb, p, s->l4 + head, s->end) ? FBR_NONE : FBR_SPOOF_IP;
}

/* The answer to a solicitation */
struct fbr_nd_reply {
	fbr_addr target; /* the address that was asked for */
	fbr_addr saddr;
	fbr_addr to; /* who has asked; ::, a probe: everybody */
	__u32 flags; /* FBR_ND_ROUTER, FBR_ND_OVERRIDE */
	__u8 mac[8]; /* the target's */
};

/* Turns the frame of a solicitation into the answer to it. Returns 1; 0 if it is untouched; or
 * -1 if it is half changed and must be dropped.
 */
__fbr_global int fbr_nd_write(struct __sk_buff *skb, const struct fbr_nd_reply *r)
{
	const __u32 l3 = ETH_HLEN, l4 = l3 + sizeof(fbr_ip);
	struct {
		fbr_addr saddr, daddr;
		__be32 len, next;
		struct fbr_nd m;
		struct fbr_nd_mac o;
	} sum = {};
	struct { /* what precedes the addresses in the IPv6 header */
		__be32 version;
		__be16 len;
		__u8 proto, hops;
	} ip = { bpf_htonl(0x60000000), bpf_htons(sizeof(sum.m) + sizeof(sum.o)), IPPROTO_ICMPV6,
		 255 };
	__u8 mac[ETH_ALEN];

	if (!r || bpf_skb_load_bytes(skb, ETH_ALEN, mac, sizeof(mac)) ||
	    bpf_skb_change_tail(skb, l4 + sizeof(sum.m) + sizeof(sum.o), 0))
		return 0;
	sum.saddr = r->saddr;
	sum.daddr = r->to;
	sum.m.type = ICMPV6_NA;
	sum.m.target = r->target;
	sum.m.flags = bpf_htonl(r->flags | FBR_ND_SOLICITED);
	if (fbr_addr_zero(r->to)) {
		sum.daddr.word[0] = bpf_htonl(0xff020000);
		sum.daddr.word[3] = bpf_htonl(1);
		sum.m.flags = bpf_htonl(r->flags);
	}
	__builtin_memcpy(sum.o.mac, r->mac, ETH_ALEN);
	sum.o.type = 2;
	sum.o.len = 1;
	sum.len = bpf_htonl(sizeof(sum.m) + sizeof(sum.o));
	sum.next = bpf_htonl(IPPROTO_ICMPV6);
	sum.m.csum = ~fbr_sum(&sum, sizeof(sum), 0);
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, r->mac, ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, l3, &ip, sizeof(ip), 0) ||
	    bpf_skb_store_bytes(skb, fbr_addr_at(l3, true), &sum.saddr, 2 * sizeof(fbr_addr), 0) ||
	    bpf_skb_store_bytes(skb, l4, &sum.m, sizeof(sum.m) + sizeof(sum.o), 0))
		return -1;
	bpf_skb_change_type(skb, PACKET_HOST);
	return 1;
}

/* Answers p's solicitation to a group for the address of the gateway or of another port of
 * its bridge. These are known here, so the question need not reach every port. A port on the
 * kernel's path answers for itself.
 *
 * A probe (RFC 4862 section 5.4), to whatever MAC address, goes on only if it is for an address
 * that p may have; a link-local one is p's from then on. An owner that is probing at the same
 * moment would give up its own address. Returns as fbr_nd_write(), -1 also for a probe that
 * must not go on; the answer is to be sent to p.
 */
__fbr_global int fbr_nd_answer(struct __sk_buff *skb, const struct fbr_dev *p,
			       const struct fbr_seen *s, bool fast)
{
	struct fbr_nd_reply r = { .flags = FBR_ND_OVERRIDE };
	struct fbr_dev *t;
	__u8 group;
	__u32 owner;
	bool probe;
	int done;

	if (!p || !s || bpf_skb_load_bytes(skb, 0, &group, 1) ||
	    bpf_skb_load_bytes(skb, s->l4 + offsetof(struct fbr_nd, target), &r.target,
			       sizeof(r.target)))
		return 0;
	r.saddr = r.target;
	r.to = s->saddr;
	probe = fbr_addr_zero(r.to);
	owner = fbr_owner(p, &r.target);
	if (owner == p->ifindex || (!probe && (!owner || !(group & 1) || !fast)))
		return 0;
	if (!owner)
		return fbr_may_have(p, &r.target) ? -1 : 0;
	t = fbr_dev_get(owner);
	if (!t || t->bridge != p->bridge)
		return probe ? -1 : 0;
	/* Of several MAC addresses, only the port knows which one has the address. */
	if (!probe && (t->flags & (FBR_DEV_KERNEL_PATH | FBR_DEV_ALLOWED)))
		return 0;
	__builtin_memcpy(r.mac, owner == p->bridge ? p->gw_mac : t->mac, ETH_ALEN);
	if (owner == p->bridge)
		r.flags |= FBR_ND_ROUTER;
	done = fbr_nd_write(skb, &r);
	return probe && !done ? -1 : done;
}

#endif
