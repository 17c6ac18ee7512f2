// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The entry points. The kernel's path is the specification: a packet that a program
 * forwards goes exactly where the kernel would have sent it. What a program does not fully
 * understand is left to the kernel (TCX_NEXT). docs/ARCHITECTURE.md walks a packet through
 * the programs.
 */
#include "lib/af.h"
#include "lib/dnat.h"
#include "lib/frag_in.h"
#include "lib/from_uplink.h"
#include "lib/guard.h"
#include "lib/hop.h"
#include "lib/refusal.h"
#include "lib/to_port.h"
#include "lib/to_uplink.h"
#if FBR_AF == 4
#include "lib/from_port.h"
#include "lib/xdp.h"
#else
#include "lib/from_port6.h"
#include "lib/nd_proxy.h"
#endif

char _license[] SEC("license")
= "Dual BSD/GPL";

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
	return fbr_dnat_missed(ctx) ? NF_DROP : fbr_input_note(ctx);
}

/* tcx ingress, host end of a container's veth pair. */
SEC("tcx/ingress")
int fbr_port_in(struct __sk_buff *skb)
{
	return fbr_from_port(skb);
}

/* tcx egress, same device: what the kernel delivers to the container. */
SEC("tcx/egress")
int fbr_port_out(struct __sk_buff *skb)
{
	return fbr_to_port(skb);
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

/* The same two for an uplink without L2 header. A redirect to it removes the frame's header. */
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

/* tcx ingress, the device that leads to the namespace that puts inbound fragments in order. */
SEC("tcx/ingress")
int fbr_frag_in(struct __sk_buff *skb)
{
	return fbr_frag_return(skb);
}

#if FBR_AF == 4
/* XDP in the driver, uplink: the part of fbr_uplink_in that needs no skb. */
SEC("xdp.frags")
int fbr_uplink_xdp(struct xdp_md *ctx)
{
	return fbr_xdp_from_uplink(ctx);
}

/* Netfilter, PREROUTING. The program does nothing. It is attached with
 * BPF_F_NETFILTER_IP_DEFRAG, which keeps defragmentation on whatever the ruleset says.
 */
SEC("netfilter")
int fbr_defrag(struct bpf_nf_ctx *ctx)
{
	return NF_ACCEPT;
}

/* The kernel has heard of a neighbour's hardware address, by ARP or otherwise: in any
 * network namespace.
 */
SEC("tp_btf/neigh_update_done")
int fbr_neighbour(__u64 *ctx)
{
	return fbr_hop_heard((struct neighbour *)ctx[0]);
}

#endif

#include "cgroup.bpf.c"
#include "control.bpf.c"
