// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The entry points. The kernel path is the specification: what a program here
 * forwards by itself goes exactly where the kernel would have sent it, and
 * whatever it does not fully understand is left to the kernel (TCX_NEXT).
 * docs/ARCHITECTURE.md walks a packet through them.
 */
#include "lib/brnf.h"
#include "lib/carry.h"
#include "lib/clock.h"
#include "lib/config.h"
#include "lib/fast.h"
#include "lib/flow.h"
#include "lib/frag.h"
#include "lib/guard.h"
#include "lib/hairpin.h"
#include "lib/hostend.h"
#include "lib/hostport.h"
#include "lib/l2.h"
#include "lib/lease.h"
#include "lib/local.h"
#include "lib/maps.h"
#include "lib/nat.h"
#include "lib/parse.h"
#include "lib/port.h"
#include "lib/qdisc.h"
#include "lib/refusal.h"
#include "lib/stats.h"
#include "lib/uplink.h"
#include "lib/xdp.h"

char _license[] SEC("license")
= "Dual BSD/GPL";

static __always_inline int fbr_drop(const struct fbr_dev *d, __u32 reason)
{
	fbr_count_drop(d, reason);
	return TCX_DROP;
}

/* Between two ports of one bridge: the frame as it is, into the other container. */
static __always_inline int fbr_forward_l2(struct __sk_buff *skb, const struct fbr_dev *p,
					  const struct fbr_conf *c, const struct fbr_dev *t)
{
	if (!c->l2_fast || (p->flags & FBR_DEV_KERNEL_PATH) || (t->flags & FBR_DEV_KERNEL_PATH) ||
	    t->mtu < p->mtu || fbr_brnf_sees(skb, p->bridge))
		return TCX_NEXT;
	fbr_count_rx(skb, p, FBR_FAST);
	fbr_count_tx(skb, t, FBR_FAST);
	return bpf_redirect_peer(t->ifindex, 0);
}

/* A packet that is neither a hit nor for another port: what the kernel must not even
 * have. It goes by the packet's address whatever the frame says: the kernel takes
 * packets also out of frames to a group or to the port's own host end.
 */
__fbr_global enum fbr_reason fbr_route_allowed(const struct fbr_dev *p, __be32 daddr)
{
	if (!p)
		return FBR_ISOLATED;

	struct fbr_net *n = fbr_net_get(daddr);

	if (n)
		return n->bridge == p->bridge ? FBR_NONE : FBR_ISOLATED;
	if (!(p->flags & FBR_DEV_INTERNAL))
		return FBR_NONE;
	return fbr_multicast(daddr) || daddr == 0xffffffff ? FBR_NONE : FBR_ISOLATED;
}

/* What a port has sent takes the kernel's path. */
__fbr_global int fbr_port_kernel(struct __sk_buff *skb, struct fbr_dev *p)
{
	if (!p)
		return TCX_DROP;
	fbr_note_queue(skb, p);
	fbr_count_rx(skb, p, FBR_SLOW);
	return TCX_NEXT;
}

/* tcx ingress, host end of a container's veth pair. */
SEC("tcx/ingress")
int fbr_port_in(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex);
	struct fbr_conf *c = fbr_conf_get();
	void *data, *data_end;
	struct fbr_flow_key k;
	struct ethhdr *eth;
	enum fbr_pending sum;
	struct fbr_flow *f;
	struct iphdr *ip;
	__u32 why, l4_len;
	__u64 now;

	if (!p || !c)
		return TCX_DROP; /* being detached */
	fbr_pull_headers(skb, ETH_HLEN);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	eth = data;
	if ((void *)(eth + 1) > data_end)
		return TCX_DROP;

	/* Anti-spoofing comes before everything else. */
	if (!fbr_mac_equal(eth->h_source, p->mac)) {
		why = FBR_SPOOF_MAC;
		goto drop;
	}
	if (skb->vlan_present) {
		why = FBR_L2_PROTO;
		goto drop;
	}
	if (eth->h_proto != bpf_htons(ETH_P_IP)) {
		why = eth->h_proto == bpf_htons(ETH_P_ARP) ? fbr_check_arp(skb, p)
		      : eth->h_proto == bpf_htons(ETH_P_IPV6)
			      ? fbr_ip6_stays(eth, data_end, p) ?: fbr_check_ip6(skb)
			      : FBR_L2_PROTO;
		if (why)
			goto drop;
		if (eth->h_proto == bpf_htons(ETH_P_ARP) && c->l2_fast && !fbr_note_queue(skb, p) &&
		    fbr_answer_arp(skb, p)) {
			fbr_count_rx(skb, p, FBR_FAST);
			fbr_count_tx(skb, p, FBR_FAST);
			return bpf_redirect_peer(p->ifindex, 0);
		}
		goto kernel;
	}
	ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > data_end) {
		why = FBR_L2_PROTO;
		goto drop;
	}
	if (ip->saddr != p->ip) {
		why = FBR_SPOOF_IP;
		goto drop;
	}

	sum = fbr_sum_pending(skb, ETH_HLEN + ip->ihl * 4, ip->protocol);
	if (sum && (sum == FBR_SUM_BAD || (ip->frag_off & bpf_htons(IP_MF | IP_OFFMASK)))) {
		why = FBR_BAD_CSUM;
		goto drop;
	}

	if (!fbr_mac_equal(eth->h_dest, p->gw_mac)) {
		__be32 daddr = ip->daddr;
		struct fbr_dev *t = NULL;

		if (!(eth->h_dest[0] & 1))
			t = fbr_mac_port(eth->h_dest, p->bridge);
		if (t && t != p && t->bridge == p->bridge &&
		    (!(p->flags & FBR_DEV_INTERNAL) || t->ip == daddr)) {
			int verdict = fbr_forward_l2(skb, p, c, t);

			if (verdict != TCX_NEXT)
				return verdict;
			goto kernel;
		}
		why = fbr_route_allowed(p, daddr);
		if (why)
			goto drop;
		goto kernel;
	}

	l4_len = fbr_fast_parse(skb, skb->len, data, data_end, ETH_HLEN, true, &k);
	if (l4_len) {
		f = fbr_flow_hit(&k);
		now = fbr_now();
		if (f && f->kind == FBR_OUT && f->pif == p->ifindex && fbr_lease_valid(f, c, now) &&
		    !(p->flags & FBR_DEV_KERNEL_PATH) && sum <= FBR_SUM_OWN &&
		    fbr_fits(skb, ETH_HLEN, k.proto, l4_len, f->mtu)) {
			__u32 oif = f->oif;

			fbr_count_rx(skb, p, FBR_FAST);
			fbr_flow_seen(f, now, cfg_hz);
			/* Point of no return. */
			if (fbr_rewrite_fast(skb, f, &k, true))
				return TCX_DROP;
			skb->mark = cfg_mark;
			return bpf_redirect(oif, 0);
		}
	}
	if (!(p->flags & FBR_DEV_INTERNAL)) {
		__be32 daddr = ip->daddr; /* ip is void after the call */

		why = fbr_hairpin(skb, p);
		if (why == FBR_FOREIGN)
			why = fbr_route_allowed(p, daddr);
		if (why == FBR_ISOLATED && fbr_ct_answers(skb))
			why = FBR_NONE;
	} else {
		why = fbr_route_allowed(p, ip->daddr);
	}
	if (why)
		goto drop;
kernel:
	return fbr_port_kernel(skb, p);
drop:
	fbr_count_rx(skb, p, FBR_SLOW);
	return fbr_drop(p, why);
}

/* Whether a rule of the host leads what the kernel delivers to a port there, from another
 * network. An internal network is closed to that, too.
 */
static __always_inline bool fbr_led_in(struct __sk_buff *skb, const struct fbr_dev *p)
{
	return !(p->flags & FBR_DEV_INTERNAL) && fbr_ct_led(bpf_cast_to_kern_ctx(skb));
}

/* Why what the kernel delivers to a port must not reach it, or FBR_NONE. */
static __always_inline __u32 fbr_deliver(struct __sk_buff *skb, const struct fbr_dev *p)
{
	__u32 iif = skb->ingress_ifindex, why = FBR_FOREIGN;
	struct fbr_dev *from = fbr_dev_get(iif);
	struct fbr_pkt pkt;

	if (iif && !from) /* another device of the host */
		return ((p->flags & FBR_DEV_ROUTED) && skb->protocol != bpf_htons(ETH_P_IPV6)) ||
				       fbr_led_in(skb, p)
			       ? FBR_NONE
			       : FBR_DIRECT;
	if (from && !(from->flags & FBR_DEV_UPLINK)) {
		if ((from->flags & FBR_DEV_BRIDGE) && fbr_hair_tagged(skb->hash))
			why = fbr_hairpin_deliver(skb);
		if (why != FBR_FOREIGN)
			return why;
		return from->bridge == p->bridge || fbr_led_in(skb, p) ? FBR_NONE : FBR_ISOLATED;
	}

	/* From an uplink, or the host itself. */
	if (from && (p->flags & FBR_DEV_INTERNAL))
		return FBR_ISOLATED;
	if (from && skb->protocol == bpf_htons(ETH_P_IPV6))
		return FBR_DIRECT; /* no network has any */
	if (skb->protocol != bpf_htons(ETH_P_IP) || fbr_parse(skb, &pkt))
		return FBR_NONE;
	if (pkt.proto == IPPROTO_ICMP && pkt.icmp_type == ICMP_REDIRECT)
		return FBR_UNSUPPORTED; /* all routes of a container lead through the bridge */
	if (!from) {
		why = fbr_hairpin_from_host(skb, &pkt);
		return why == FBR_FOREIGN ? FBR_NONE : why;
	}
	/* fbr_uplink_in has let it in, or it did not come past there as it should: so it
	 * is judged again. A fragment without ports is nothing without its first, which
	 * the kernel, having put them in order, has delivered just before.
	 */
	if (fbr_lease_inbound(skb, &pkt, p) || (p->flags & FBR_DEV_ROUTED) ||
	    (pkt.frag & FBR_FRAG_LATER) || fbr_multicast(pkt.daddr) || fbr_ct_translates(skb))
		return FBR_NONE;
	return FBR_DIRECT;
}

/* tcx egress, same device: what the kernel delivers to the container. */
SEC("tcx/egress")
int fbr_port_out(struct __sk_buff *skb)
{
	struct fbr_dev *p = fbr_dev_get(skb->ifindex);
	__u32 why;

	if (!p)
		return TCX_DROP;
	why = fbr_deliver(skb, p);
	if (why)
		return fbr_drop(p, why);
	fbr_note_queue(skb, p);
	fbr_count_tx(skb, p, FBR_SLOW);
	return TCX_NEXT;
}

/* tcx ingress, uplink. l2 is the length of the device's L2 header: ETH_HLEN, or
 * 0 where packets begin with the IP header (tun, WireGuard, ppp).
 */
static __always_inline int fbr_from_uplink(struct __sk_buff *skb, const __u32 l2)
{
	struct fbr_dev *u = fbr_dev_get(skb->ifindex), *t;
	struct fbr_conf *c = fbr_conf_get();
	void *data, *data_end;
	struct fbr_flow_key k;
	struct fbr_flow *f;
	struct fbr_pkt pkt;
	__u32 why, l4_len;
	__u64 now;

	if (!u || !c)
		return TCX_NEXT;
	if (l2 && skb->vlan_present) {
		why = fbr_untag(skb);
		if (why) {
			fbr_count_rx(skb, u, FBR_SLOW);
			return fbr_drop(u, why);
		}
		if (skb->vlan_present)
			goto host;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP))
		goto host;
	fbr_pull_headers(skb, l2);
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;

	l4_len = fbr_fast_parse(skb, skb->len, data, data_end, l2, false, &k);
	if (l4_len && (fbr_in_range(c, k.dport) || c->published)) {
		now = fbr_now();
		f = fbr_inbound_hit(&k, c, now, &t);
		if (f && fbr_fits(skb, l2, k.proto, l4_len, f->mtu) &&
		    fbr_sum_pending(skb, l2 + sizeof(struct iphdr), k.proto) <= FBR_SUM_OWN) {
			__u32 oif = f->oif;

			fbr_count_rx(skb, u, FBR_FAST);
			/* Point of no return. The container gets a frame. */
			if (!l2 && fbr_push_eth(skb))
				return TCX_DROP;
			fbr_count_tx(skb, t, FBR_FAST);
			fbr_flow_seen(f, now, cfg_hz);
			if (fbr_rewrite_fast(skb, f, &k, false))
				return TCX_DROP;
			skb->mark = 0;
			return bpf_redirect_peer(oif, 0);
		}
	}

	if (fbr_parse_at(skb, l2, &pkt))
		goto host;
	if (fbr_frag_returned(skb, &pkt))
		return TCX_NEXT; /* counted when it came */
	why = FBR_FOREIGN;
	if (!pkt.frag && pkt.kind == FBR_L4_ICMP_ERR) {
		why = fbr_icmp_error_in(skb, &pkt);
	} else if (!pkt.frag && (pkt.kind == FBR_L4_PORTS || pkt.kind == FBR_L4_ECHO_REP) &&
		   pkt.saddr != pkt.daddr && /* a hairpin's sessions are not for outside */
		   (fbr_in_range(c, pkt.dport) || c->published)) {
		fbr_key(&k, &pkt);
		why = fbr_unsnat_first(skb, &pkt, u, &k);
	}
	if (why == FBR_NONE)
		goto host;
	if (why != FBR_FOREIGN) { /* half translated */
		fbr_count_rx(skb, u, FBR_SLOW);
		return fbr_drop(u, why);
	}
	why = fbr_from_outside(skb, u, pkt.saddr, pkt.daddr);
	if (why) {
		fbr_count_rx(skb, u, FBR_SLOW);
		return fbr_drop(u, why);
	}
	if (pkt.frag && c->frags && fbr_frag_bounce(skb, &pkt, u, c->frags)) {
		fbr_count_rx(skb, u, FBR_SLOW);
		return bpf_redirect(c->frags, 0);
	}
host:
	fbr_count_rx(skb, u, FBR_SLOW);
	return TCX_NEXT;
}

/* tcx ingress, the device to the namespace that puts inbound fragments in order. */
SEC("tcx/ingress")
int fbr_frag_in(struct __sk_buff *skb)
{
	return fbr_frag_return(skb);
}

/* tcx egress, uplink: the only way out, and the only place where flows begin. */
static __always_inline int fbr_to_uplink(struct __sk_buff *skb, const __u32 l2)
{
	struct fbr_dev *u = fbr_dev_get(skb->ifindex), *blame;
	void *data, *data_end;
	struct fbr_pkt pkt;
	struct fbr_net *n;
	struct iphdr *ip;
	__u32 why;

	if (!u) {
		/* Being detached: nothing of a container's may slip through. */
		if (skb->protocol != bpf_htons(ETH_P_IP) || fbr_parse_at(skb, l2, &pkt))
			return TCX_NEXT;
		n = fbr_net_get(pkt.saddr);
		return n && (n->flags & (FBR_NET_MASQUERADE | FBR_NET_INTERNAL)) ? TCX_DROP
										 : TCX_NEXT;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP))
		goto pass;
	data = (void *)(long)skb->data;
	data_end = (void *)(long)skb->data_end;
	ip = data + l2;
	if ((void *)(ip + 1) > data_end)
		goto parse;

	/* The container's source comes first; the mark only tells that the rest
	 * has been seen to. The uplink's own address spares most packets the trie.
	 */
	if (ip->saddr == u->ip && cfg_mark && skb->mark == cfg_mark) {
		skb->mark = 0;
		fbr_count_tx(skb, u, FBR_FAST);
		return TCX_NEXT;
	}
parse:
	if (fbr_parse_at(skb, l2, &pkt))
		goto pass;
	n = pkt.saddr == u->ip ? NULL : fbr_net_hidden(skb, pkt.saddr);
	blame = u;
	if (n) {
		why = fbr_container_out(skb, &pkt, u, n, &blame);
		if (!why)
			goto pass;
		if (!blame)
			return fbr_drop(u, why);
		fbr_count_drop(blame, why);
		if ((why == FBR_NAT_FULL || why == FBR_QUOTA) && fbr_icmp_refuse(skb, &pkt, blame))
			return bpf_redirect(blame->ifindex, 0);
		return TCX_DROP;
	}
	if (cfg_mark && skb->mark == cfg_mark) {
		skb->mark = 0;
		fbr_count_tx(skb, u, FBR_FAST);
		return TCX_NEXT;
	}
	why = fbr_host_out(skb, &pkt);
	if (why)
		return fbr_drop(u, why);
pass:
	fbr_count_tx(skb, u, FBR_SLOW);
	return TCX_NEXT;
}

SEC("tcx/ingress")
int fbr_uplink_in(struct __sk_buff *skb)
{
	return fbr_from_uplink(skb, ETH_HLEN);
}

SEC("tcx/egress")
int fbr_uplink_out(struct __sk_buff *skb)
{
	return fbr_to_uplink(skb, ETH_HLEN);
}

/* XDP in the driver, uplink: what of fbr_uplink_in can be done without an skb. */
SEC("xdp.frags")
int fbr_uplink_xdp(struct xdp_md *ctx)
{
	return fbr_xdp_from_uplink(ctx);
}

/* The same for an uplink without L2 header. A redirect to it takes the frame's off. */
SEC("tcx/ingress")
int fbr_tun_in(struct __sk_buff *skb)
{
	return fbr_from_uplink(skb, 0);
}

SEC("tcx/egress")
int fbr_tun_out(struct __sk_buff *skb)
{
	return fbr_to_uplink(skb, 0);
}

/* Netfilter, POSTROUTING. */
SEC("netfilter")
int fbr_guard(struct bpf_nf_ctx *ctx)
{
	return fbr_guard_check(ctx);
}

/* Netfilter, INPUT, after every rule. */
SEC("netfilter")
int fbr_input(struct bpf_nf_ctx *ctx)
{
	return fbr_input_note(ctx);
}

/* Netfilter, PREROUTING: attached with BPF_F_NETFILTER_IP_DEFRAG, it keeps
 * defragmentation on whatever the ruleset says. The program itself does nothing.
 */
SEC("netfilter")
int fbr_defrag(struct bpf_nf_ctx *ctx)
{
	return NF_ACCEPT;
}

/* Sockets of the host and published ports, attached to a cgroup while there are any. */
SEC("cgroup/connect4")
int fbr_connect4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_connect4(ctx);
}

SEC("cgroup/connect6")
int fbr_connect6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_connect6(ctx);
}

SEC("cgroup/sendmsg4")
int fbr_sendmsg4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_sendmsg4(ctx);
}

SEC("cgroup/recvmsg4")
int fbr_recvmsg4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell4(ctx);
}

SEC("cgroup/recvmsg6")
int fbr_recvmsg6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell6(ctx);
}

SEC("cgroup/getpeername4")
int fbr_getpeername4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell4(ctx);
}

SEC("cgroup/getpeername6")
int fbr_getpeername6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_tell6(ctx);
}

SEC("cgroup/bind4")
int fbr_bind4(struct bpf_sock_addr *ctx)
{
	return fbr_cg_bind4(ctx);
}

SEC("cgroup/bind6")
int fbr_bind6(struct bpf_sock_addr *ctx)
{
	return fbr_cg_bind6(ctx);
}

/* Through all sockets of the host, once something is published no more. */
SEC("iter/tcp")
int fbr_end_tcp(struct bpf_iter__tcp *ctx)
{
	return fbr_end_stale(ctx->sk_common, IPPROTO_TCP);
}

SEC("iter/udp")
int fbr_end_udp(struct bpf_iter__udp *ctx)
{
	return fbr_end_stale((struct sock_common *)ctx->udp_sk, IPPROTO_UDP);
}

/* Requests of the control plane, run through BPF_PROG_TEST_RUN so that they
 * see the maps as the other programs do. The packet is a struct fbr_request.
 */
enum fbr_op {
	FBR_OP_NOW = 1, /* arg = jiffies */
	FBR_OP_FLUSH =
		2, /* end the sessions of device ifindex (0: all) in slots [from, to); arg = how many */
	FBR_OP_FIB = 3, /* arg = what bpf_fib_lookup says to BPF_FIB_LOOKUP_SRC */
	FBR_OP_OPEN =
		4, /* let mappings have the ports [from, to) of the classes whose bits arg has */
	FBR_OP_SHUT = 5, /* or not any more */
	FBR_OP_CARRY =
		6, /* a struct fbr_carried follows; from: it may be made anew; arg = enum fbr_carry_result */
};

struct fbr_request {
	__u8 eth[ETH_HLEN];
	__u16 pad;
	enum fbr_op op;
	__u32 ifindex;
	__u32 from;
	__u32 to;
	__u64 arg;
};

struct fbr_flush {
	__u32 ifindex;
	__u32 slot;
	__u64 n;
};

static long fbr_flush_one(__u64 i, struct fbr_flush *w)
{
	__u32 slot = w->slot++;
	struct fbr_session *s = fbr_sess_get(slot);

	if (s && (!w->ifindex || s->pif == w->ifindex || s->payer == w->ifindex) &&
	    fbr_sess_claim(s, fbr_sess_state(s))) {
		fbr_sess_free(slot);
		w->n++;
	}
	return 0;
}

struct fbr_ports {
	__u32 port;
	__u32 classes;
	bool open;
};

static long fbr_ports_one(__u64 i, struct fbr_ports *w)
{
	__u32 class;

	for (class = 0; class < FBR_CLASSES; class ++) {
		struct fbr_pool *pool = w->classes & 1 << class ? fbr_pool_of(class) : NULL;

		if (pool)
			fbr_pool_set(pool, w->port, w->open);
	}
	w->port++;
	return 0;
}

static __noinline int fbr_serve(struct __sk_buff *skb, struct fbr_request *r)
{
	struct bpf_fib_lookup fib = { .family = AF_INET, .ifindex = 1 };
	struct fbr_flush w = { .ifindex = r->ifindex, .slot = r->from };
	struct fbr_ports ports = { .port = r->from,
				   .classes = r->arg,
				   .open = r->op == FBR_OP_OPEN };

	switch (r->op) {
	case FBR_OP_NOW:
		r->arg = fbr_now();
		return 0;
	case FBR_OP_FLUSH:
		if (r->to > r->from)
			bpf_loop(r->to - r->from, fbr_flush_one, &w, 0);
		r->arg = w.n;
		return 0;
	case FBR_OP_CARRY:
		r->arg = fbr_carry(skb, sizeof(*r), r->from);
		return 0;
	case FBR_OP_OPEN:
	case FBR_OP_SHUT:
		if (r->to > r->from)
			bpf_loop(r->to - r->from, fbr_ports_one, &ports, 0);
		return 0;
	case FBR_OP_FIB:
		/* A flag the kernel does not know is -EINVAL, whatever the routes. */
		r->arg = bpf_fib_lookup(skb, &fib, sizeof(fib),
					BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SRC |
						BPF_FIB_LOOKUP_SKIP_NEIGH);
		return 0;
	}
	return -1;
}

SEC("tc")
int fbr_control(struct __sk_buff *skb)
{
	struct fbr_request r;

	if (bpf_skb_load_bytes(skb, 0, &r, sizeof(r)) || fbr_serve(skb, &r))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &r, sizeof(r), 0) ? -1 : 0;
}
