/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that move from an uplink to a device where the kernel translates them, since a
 * route has changed. Connection tracking has decided not to translate them when they
 * began, and decides once. So they would leave with a container's address, and fbr_guard
 * drops them. It notes whom it has dropped. The container's next packet ends connection
 * tracking's entry, and the kernel decides again.
 */
#ifndef FBR_STRANDED_H
#define FBR_STRANDED_H

#include "allowed.h"
#include "clock.h"
#include "config.h"
#include "ct.h"
#include "device.h"
#include "flow.h"
#include "parse.h"
#include "qdisc.h"
#include "reason.h"
#include "scratch.h"
#include "stats.h"

#define FBR_STRANDED_MAX  256

/* seconds; no program can end an entry of ICMP, which expires 30 s after its last packet
 * (nf_conntrack_icmp_timeout)
 */
#define FBR_STRANDED_ECHO 31

static struct fbr_stranded {
	__u32 mark; /* of a container's address and a remote one; 0: none */
	__u32 at;   /* jiffies, low half */
} fbr_stranded[FBR_STRANDED_MAX];

/* Nothing has stranded for long: what almost every packet sees. */
static __u64 fbr_stranded_until; /* jiffies64 */

static __always_inline __u32 fbr_stranded_mark(fbr_addr saddr, fbr_addr daddr)
{
	const struct fbr_flow_key k = { .saddr = saddr, .daddr = daddr };

	return fbr_flow_hash(&k) ?: 1;
}

/* Notes that fbr_guard drops a packet, if connection tracking has let it pass as it is. */
static __always_inline void fbr_strand(struct sk_buff *k, fbr_addr saddr, fbr_addr daddr)
{
	__u32 mark = fbr_stranded_mark(saddr, daddr);
	struct fbr_stranded *s = &fbr_stranded[mark % FBR_STRANDED_MAX];
	struct fbr_net *n = fbr_net_get(saddr);
	__u64 now = fbr_now();

	/* A forged packet has not come in by the network's bridge. */
	if (!n || (n->flags & FBR_NET_INTERNAL) || (__u32)k->skb_iif != n->bridge)
		return;
	if (!fbr_ct_entry(k) || (fbr_ct_status(k) & IPS_SRC_NAT))
		return;
	s->mark = mark;
	s->at = now;
	fbr_stranded_until = now + FBR_STRANDED_ECHO * cfg_hz;
}

/* Whether the kernel would route a container's packet to an uplink. */
__fbr_global bool fbr_leaves_by_uplink(struct __sk_buff *skb, fbr_addr_arg saddr,
				       fbr_addr_arg daddr)
{
	if (!FBR_GIVEN(saddr) || !FBR_GIVEN(daddr))
		return false;

	struct fbr_dev *port = fbr_dev_get(skb->ifindex), *out;
	FBR_SCRATCH_ZERO(bpf_fib_lookup, fib);

	if (!port || !fib)
		return false;
	fbr_fib_to(fib, port->bridge, FBR_ADDR(daddr));
	fbr_fib_src(fib) = FBR_ADDR(saddr);
	if (bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH))
		return false;
	out = fbr_dev_get(fib->ifindex);
	return out && (out->flags & FBR_DEV_UPLINK);
}

/* Ends connection tracking's entry of a flow that has stranded. Returns whether the packet
 * would only prolong an entry that has to expire.
 */
__fbr_global bool fbr_unstrand(struct __sk_buff *skb)
{
	struct bpf_ct_opts___12 o = { .netns_id = -1 };
	struct bpf_sock_tuple t = {};
	struct fbr_stranded *s;
	struct fbr_flow_key k;
	struct nf_conn *ct;
	struct fbr_pkt p;
	__u32 mark;

	if (fbr_parse(skb, &p))
		return false;
	mark = fbr_stranded_mark(p.saddr, p.daddr);
	s = &fbr_stranded[mark % FBR_STRANDED_MAX];
	if (s->mark != mark || (__u32)fbr_now() - s->at >= FBR_STRANDED_ECHO * cfg_hz)
		return false;
	if (fbr_leaves_by_uplink(skb, FBR_ARG(p.saddr), FBR_ARG(p.daddr))) {
		s->mark = 0;
		return false;
	}
	if (p.kind == FBR_L4_ECHO_REQ)
		return true;
	if (p.kind != FBR_L4_PORTS || !cfg_conntrack)
		return false;
	fbr_key(&k, &p);
	fbr_ct_tuple(&t, &k);
	o.l4proto = k.proto;
	ct = bpf_skb_ct_lookup(skb, &t, FBR_TUPLE_LEN, &o, sizeof(o));
	if (!ct)
		return false;
	s->mark = 0;
	if (bpf_core_field_exists(ct->status) && !(ct->status & IPS_SRC_NAT))
		bpf_ct_change_timeout(ct, 0);
	bpf_ct_release(ct);
	return false;
}

/* Sends a port's packet on to the kernel. */
__fbr_global int fbr_port_kernel(struct __sk_buff *skb, struct fbr_dev *p)
{
	if (!p)
		return TCX_DROP;
	fbr_count_rx(skb, p, FBR_SLOW);
	if (p->flags & FBR_DEV_ALLOWED)
		fbr_hold(skb, p);
	if (fbr_stranded_until > fbr_now() && fbr_unstrand(skb))
		return fbr_drop(p, FBR_NO_UPLINK);
	fbr_choose_path(skb, p);
	return TCX_NEXT;
}

#endif
