/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether the kernel's bridge passes frames to netfilter (br_netfilter). The namespace's
 * switches net.bridge.bridge-nf-call-* decide that, or the bridge's own flag. If it does,
 * frames between ports are left to the kernel, since rules may drop or translate them.
 *
 * Anybody may set a switch or load the module at any time, and no process may be running to
 * notice. So the programs read the switch themselves, once a jiffy for each bridge. They
 * find the sysctl's entry as the kernel does.
 */
#ifndef FBR_BRNF_H
#define FBR_BRNF_H

#include "../include/bpf/bpf_core_read.h"
#include "clock.h"
#include "kctx.h"

#define FBR_SYSCTL_DEPTH 16 /* levels of a tree that holds one directory */
#define FBR_SYSCTL_NAME  24 /* bytes compared: enough to tell the names apart */
#define FBR_BRNF_LANES   64

/* The result of the last look at a bridge. */
static struct fbr_brnf {
	__u64 at; /* jiffies */
	__u32 bridge;
	bool calls;
} fbr_brnf[FBR_BRNF_LANES];

/* A sysctl's name as numbers that compare as the kernel compares names. */
struct fbr_sysctl_name {
	__u64 part[FBR_SYSCTL_NAME / 8];
};

static __always_inline int fbr_name_cmp(const struct fbr_sysctl_name *a,
					const struct fbr_sysctl_name *b)
{
	int i;

	for (i = 0; i < FBR_SYSCTL_NAME / 8; i++) {
		__u64 x = bpf_be64_to_cpu(a->part[i]), y = bpf_be64_to_cpu(b->part[i]);

		if (x != y)
			return x < y ? -1 : 1;
	}
	return 0;
}

/* Looks for a name in a directory, as find_entry() in fs/proc/proc_sysctl.c does. Returns
 * the entry's header, and in data the address of its value. Both are NULL if there is no
 * such entry.
 */
static __always_inline struct ctl_table_header *
fbr_sysctl_find(struct ctl_dir *dir, const struct fbr_sysctl_name *name, void **data)
{
	struct rb_node *node = BPF_CORE_READ(dir, root.rb_node);
	int i;

	*data = NULL;
	for (i = 0; i < FBR_SYSCTL_DEPTH && node; i++) {
		struct ctl_node *at = (void *)node - bpf_core_field_offset(struct ctl_node, node);
		struct ctl_table_header *h = BPF_CORE_READ(at, header);
		__u64 n = ((__u64)at - (__u64)BPF_CORE_READ(h, node)) /
			  bpf_core_type_size(struct ctl_node);
		const struct ctl_table *entry = (const void *)BPF_CORE_READ(h, ctl_table) +
						n * bpf_core_type_size(struct ctl_table);
		struct fbr_sysctl_name have = {};
		int cmp;

		bpf_probe_read_kernel_str(&have, sizeof(have), BPF_CORE_READ(entry, procname));
		cmp = fbr_name_cmp(name, &have);
		if (!cmp) {
			*data = BPF_CORE_READ(entry, data);
			return h;
		}
		node = cmp < 0 ? BPF_CORE_READ(node, rb_left) : BPF_CORE_READ(node, rb_right);
	}
	return NULL;
}

/* The value of a switch in net/bridge; 0 if there is none. */
static __always_inline bool fbr_sysctl_set(struct ctl_dir *dir, const struct fbr_sysctl_name *name)
{
	void *data;
	int value;

	return fbr_sysctl_find(dir, name, &data) &&
	       !bpf_probe_read_kernel(&value, sizeof(value), data) && value;
}

#define FBR_NAME(text)                        \
	((union {                             \
		 char text_[FBR_SYSCTL_NAME]; \
		 struct fbr_sysctl_name name; \
	 }){ text }                           \
		 .name)

/* Reads the switches that apply to the bridge of the packet's device. */
__fbr_global bool fbr_brnf_look(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;
	struct net *net = BPF_CORE_READ(dev, nd_net.net);
	struct fbr_sysctl_name path[2] = { FBR_NAME("net"), FBR_NAME("bridge") };
	struct fbr_sysctl_name ip = FBR_NAME("bridge-nf-call-iptables");
	struct ctl_dir *dir = (void *)net + bpf_core_field_offset(struct net, sysctls) +
			      bpf_core_field_offset(struct ctl_table_set, dir);
	struct ctl_table_header *h;
	void *data;
	int i;

	for (i = 0; i < 2; i++) {
		h = fbr_sysctl_find(dir, &path[i], &data);
		if (!h)
			return false; /* without br_netfilter, a bridge's flag has no effect */
		dir = (void *)h - bpf_core_field_offset(struct ctl_dir, header);
	}
	if (fbr_sysctl_set(dir, &ip))
		return true;
	if (bpf_core_type_exists(struct net_bridge_port)) {
		struct net_bridge_port *port = BPF_CORE_READ(dev, rx_handler_data);
		/* The flag's number since Linux 4.20. The types of a module may lack the enum. */
		__u32 flag = 2;

		if (bpf_core_enum_value_exists(enum net_bridge_opts, BROPT_NF_CALL_IPTABLES))
			flag = bpf_core_enum_value(enum net_bridge_opts, BROPT_NF_CALL_IPTABLES);
		return BPF_CORE_READ(port, br, options) >> flag & 1;
	}
	return false;
}

/* Whether iptables has to see an IPv4 frame of a port of this bridge. */
static __always_inline bool fbr_brnf_sees(struct __sk_buff *skb, __u32 bridge)
{
	struct fbr_brnf *b = &fbr_brnf[bridge % FBR_BRNF_LANES];
	__u64 now = fbr_now();

	if (b->at != now || b->bridge != bridge) {
		b->calls = fbr_brnf_look(skb);
		b->bridge = bridge;
		b->at = now;
	}
	return b->calls;
}

#endif
