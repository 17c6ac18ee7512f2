/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is fixed for the life of a program: set by Go before loading. What can
 * change while running lives in the map fbr_conf.
 */
#ifndef FBR_CONFIG_H
#define FBR_CONFIG_H

#include "../include/kernel.h"

/* jiffies per second */
volatile const __u32 cfg_hz = 250;
/* skb->mark of packets that the fast path sends through fbr_uplink_out: random per instance */
volatile const __u32 cfg_mark = 0;
/* the network namespace of this instance: programs on cgroups see the whole machine's */
volatile const __u64 cfg_netns = 0;
/* sessions at most */
volatile const __u32 cfg_flows_max = 1024;
/* the size of fbr_near, a power of two, less one */
volatile const __u32 cfg_near_mask = 2047;
/* sessions that one port may hold (it must leave the rest to the others) */
volatile const __u32 cfg_flows_quota = 820;
/* of these sessions, TCP ones that are not established */
volatile const __u32 cfg_half_quota = 205;
/* sessions that were begun outside and are not assured, of all ports together */
volatile const __u32 cfg_waiting_max = 128;
/* external ports that one port may hold; 0: four fifths of those there are */
volatile const __u32 cfg_ports_quota = 0;
/* the kernel knows BPF_FIB_LOOKUP_SRC (6.7) */
volatile const bool cfg_fib_src = false;
/* conntrack's kfuncs are there (6.0). Not asked of the symbols themselves: where conntrack is a
 * module, their addresses cannot be loaded by every loader.
 */
volatile const bool cfg_conntrack = false;
/* grows with each upgrade, so that the sweep timer takes the new callback */
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
/* Begun outside, and nobody has proven yet to be there: as the kernel's
 * nf_conntrack_tcp_timeout_syn_recv and nf_conntrack_udp_timeout.
 */
volatile const __u32 cfg_to_tcp_waiting = 60;
volatile const __u32 cfg_to_udp_waiting = 30;
/* How long an external port stands back in the pool after its release, or after a neighbour
 * was seen using it.
 */
volatile const __u32 cfg_to_hold = 120;

#endif
