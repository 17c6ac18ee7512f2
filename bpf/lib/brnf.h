/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether netfilter sees the frames of a bridge: through chains of the bridge family (nft,
 * ebtables), or through iptables and br_netfilter. The namespace's switches
 * net.bridge.bridge-nf-call-* turn the latter on, or the bridge's own flag. More than MAC
 * addresses then decides where a frame goes.
 *
 * Anybody may set a switch, add a chain or load the module at any time, and no process may
 * be running to notice. So the programs look themselves, once a jiffy for each bridge, when
 * the bridge has carried a frame. They find the sysctl's entry as the kernel does.
 */
#ifndef FBR_BRNF_H
#define FBR_BRNF_H

#include "../include/bpf/bpf_core_read.h"
#include "clock.h"
#include "kctx.h"

#define FBR_SYSCTL_DEPTH 16 /* levels of a tree that holds one directory */
#define FBR_SYSCTL_NAME  (((int)sizeof(FBR_BRNF_SWITCH) + 7) / 8 * 8) /* bytes compared */
#define FBR_BRNF_LANES   64
#define FBR_HOOKS_MAX    8 /* hooks looked at; one beyond these is somebody's in any case */

/* The result of the last look at a bridge. */
static struct fbr_brnf {
	__u64 at; /* jiffies */
	__u32 bridge;
	bool sees;
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

/* Whether br_netfilter calls iptables (ip6tables) for frames of the bridge of the port dev. */
static __always_inline bool fbr_brnf_calls(struct net *net, struct net_device *dev)
{
	struct fbr_sysctl_name path[2] = { FBR_NAME("net"), FBR_NAME("bridge") };
	struct fbr_sysctl_name ip = FBR_NAME(FBR_BRNF_SWITCH);
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
		/* The types of a module may lack the enum. */
		__u32 flag = FBR_BRNF_BIT;

		if (bpf_core_enum_value_exists(enum net_bridge_opts, FBR_BRNF_OPTION))
			flag = bpf_core_enum_value(enum net_bridge_opts, FBR_BRNF_OPTION);
		return BPF_CORE_READ(port, br, options) >> flag & 1;
	}
	return false;
}

/* Whether a hook is one of br_netfilter's own (br_nf_ops in br_netfilter_hooks.c), which
 * exist wherever a bridge does. Their priorities are NF_BR_PRI_BRNF, one before it, and
 * NF_BR_PRI_LAST. No other hook without one of nft's types has these.
 */
static __always_inline bool fbr_hook_brnf(struct nf_hook_ops *ops)
{
	int priority = BPF_CORE_READ(ops, priority);

	return !BPF_CORE_READ_BITFIELD_PROBED(ops, hook_ops_type) &&
	       (priority == NF_BR_PRI_BRNF || priority == NF_BR_PRI_BRNF - 1 ||
		priority == NF_BR_PRI_LAST);
}

/* Whether the bridge family has hooks that frames between ports pass. */
static __always_inline bool fbr_bridge_hooked(struct net *net)
{
	__u32 at, i;

	if (!bpf_core_field_exists(net->nf.hooks_bridge))
		return false;
	for (at = NF_BR_PRE_ROUTING; at < NF_BR_NUMHOOKS; at += NF_BR_FORWARD) {
		struct nf_hook_entries *e = NULL;
		struct nf_hook_ops *ops = NULL;
		__u32 n;

		bpf_core_read(&e, sizeof(e), &net->nf.hooks_bridge[at]);
		if (!e)
			continue;
		n = BPF_CORE_READ(e, num_hook_entries);
		if (n > FBR_HOOKS_MAX)
			return true;
		for (i = 0; i < n && i < FBR_HOOKS_MAX; i++) {
			bpf_probe_read_kernel(
				&ops, sizeof(ops),
				(void *)e + bpf_core_field_offset(struct nf_hook_entries, hooks) +
					n * bpf_core_type_size(struct nf_hook_entry) +
					i * sizeof(ops));
			if (!fbr_hook_brnf(ops))
				return true;
		}
	}
	return false;
}

/* Looks at the bridge that the packet's device is a port of. */
__fbr_global bool fbr_brnf_look(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;
	struct net *net = BPF_CORE_READ(dev, nd_net.net);

	return fbr_bridge_hooked(net) || fbr_brnf_calls(net, dev);
}

/* Whether netfilter sees an IP frame that this bridge carries between two ports. */
static __always_inline bool fbr_brnf_sees(struct __sk_buff *skb, __u32 bridge)
{
	struct fbr_brnf *b = &fbr_brnf[bridge % FBR_BRNF_LANES];
	__u64 now = fbr_now();

	if (b->at != now || b->bridge != bridge) {
		b->sees = fbr_brnf_look(skb);
		b->bridge = bridge;
		b->at = now;
	}
	return b->sees;
}

#endif
