/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Constants of a loaded program. Go sets them before loading. Settings that change while
 * the programs run are in the map fbr_conf.
 */
#ifndef FBR_CONFIG_H
#define FBR_CONFIG_H

#include "../include/kernel.h"

/* jiffies per second */
volatile const __u32 cfg_hz = 250;
/* skb->mark of packets that the fast path sends through fbr_uplink_out: random per instance */
volatile const __u32 cfg_mark = 0;
/* cookie of this instance's network namespace: programs on cgroups see the whole machine */
volatile const __u64 cfg_netns = 0;
/* maximum number of sessions */
volatile const __u32 cfg_flows_max = 1024;
/* the size of fbr_near, a power of two, minus one */
volatile const __u32 cfg_near_mask = 2047;
/* sessions that one port may hold (it must leave the rest to others) */
volatile const __u32 cfg_flows_quota = 820;
/* of these, TCP sessions that are not established */
volatile const __u32 cfg_half_quota = 205;
/* sessions begun outside and not assured, of all ports together */
volatile const __u32 cfg_waiting_max = 128;
/* external ports that one port may hold; 0: four fifths of all open ones */
volatile const __u32 cfg_ports_quota = 0;
/* the kernel knows BPF_FIB_LOOKUP_SRC (6.7) */
volatile const bool cfg_fib_src = false;
/* The kernel has conntrack's kfuncs (6.0). The symbols themselves cannot tell: where
 * conntrack is a module, not every loader can load their addresses.
 */
volatile const bool cfg_conntrack = false;
/* the same of nf_nat's (6.1), which translate for published ports */
volatile const bool cfg_nat = false;
/* raised by each upgrade, so that the sweep timer takes the new callback */
volatile const __u32 cfg_epoch = 0;

/* Mapping timeouts in seconds (RFC 4787 REQ-5, 5382 REQ-5, 5508 REQ-2, 7857 section 2) */
volatile const __u32 cfg_to_udp_oneway = 120;
volatile const __u32 cfg_to_udp = 300;
/* one question to port 53 and its answer (RFC 4787 REQ-5a) */
volatile const __u32 cfg_to_udp_dns = 20;
volatile const __u32 cfg_to_icmp = 60;
volatile const __u32 cfg_to_tcp_open = 240;
/* the kernel's nf_conntrack_tcp_timeout_established */
volatile const __u32 cfg_to_tcp = 432000;
volatile const __u32 cfg_to_tcp_half = 7440; /* one side has sent FIN */
volatile const __u32 cfg_to_tcp_closing = 240;
/* Sessions begun outside whose client has not yet proven its address: the kernel's
 * nf_conntrack_tcp_timeout_syn_recv and nf_conntrack_udp_timeout.
 */
volatile const __u32 cfg_to_tcp_waiting = 60;
volatile const __u32 cfg_to_udp_waiting = 30;
/* How long an external port is passed over after its release, or after a neighbour was seen
 * using it.
 */
volatile const __u32 cfg_to_hold = 120;

#endif
