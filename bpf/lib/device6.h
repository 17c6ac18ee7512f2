/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a device has of IPv6 (device.h). */
#ifndef FBR_DEVICE6_H
#define FBR_DEVICE6_H

#define FBR_IP_ROUTED  FBR_DEV_ROUTED6
#define FBR_IP_EXCEPTS FBR_DEV_EXCEPTS6
#define FBR_IP_WAYS    FBR_DEV_WAYS6
#define FBR_IP_CLOSED  FBR_DEV_CLOSED6
#define FBR_OPENED(c)  ((c)->opened6)
/* An uplink that is open or not as the devices that are none: one without an IPv6 address is
 * none for IPv6.
 */
#define FBR_AS_OTHERS(d) \
	(((d)->flags & FBR_DEV_UPLINK) && (((d)->flags & FBR_DEV_SIDE) || !fbr_dev_has_ip(d)))

/* fbr_dev6[the device's slot in fbr_devs]: a device of the IPv6 programs */
struct fbr_dev6 {
	__u32 ifindex; /* 0: the slot is free; otherwise it must equal the device's */
	__u32 claims;  /* link-local addresses that the port has claimed (addr6.h) */
	/* Port: the container's first address, of which fbr_hosts has all; uplink: the primary
	 * one; bridge: the gateway's
	 */
	fbr_addr ip;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FBR_DEVS_MAX + FBR_DEVS_MORE);
	__type(key, __u32);
	__type(value, struct fbr_dev6);
} fbr_dev6 SEC(".maps");

/* The entry of a device, or NULL if it has no IPv6. */
static __always_inline struct fbr_dev6 *fbr_dev6_get(__u32 ifindex)
{
	__u32 slot = ifindex % FBR_DEVS_MAX;
	struct fbr_dev6 *d = bpf_map_lookup_elem(&fbr_dev6, &slot);

	if (!d || d->ifindex == ifindex)
		return d;
	slot = fbr_dev_elsewhere(ifindex);
	d = bpf_map_lookup_elem(&fbr_dev6, &slot);
	return d && d->ifindex == ifindex ? d : NULL;
}

static __always_inline fbr_addr fbr_dev_ip(const struct fbr_dev *d)
{
	struct fbr_dev6 *six = fbr_dev6_get(d->ifindex);

	return six ? six->ip : FBR_NO_ADDR;
}

/* The same as an argument of a global function; NULL if it has none. */
static __always_inline fbr_addr_arg fbr_dev_ip_arg(const struct fbr_dev *d)
{
	struct fbr_dev6 *six = fbr_dev6_get(d->ifindex);

	return six && !fbr_addr_zero(six->ip) ? &six->ip : NULL;
}
#define FBR_DEV_IP_ARG(d)        fbr_dev_ip_arg(d)
#define fbr_dev_has_ip(d)        (fbr_dev_ip_arg(d) != NULL)

/* What is not IPv6 is the IPv4 programs', which have counted it. */
#define fbr_other_family(skb, d) true

struct fbr_pkt;
int fbr_nd_proxy(struct __sk_buff *skb, const struct fbr_dev *u, const struct fbr_pkt *p);

/* Whether an address is one of the port's container. */
static __always_inline bool fbr_port_is(const struct fbr_dev *p, fbr_addr_arg addr)
{
	__u32 *port;

	if (fbr_addr_eq(fbr_dev_ip(p), *addr))
		return true;
	port = bpf_map_lookup_elem(&fbr_hosts, addr);
	return port && *port == p->ifindex;
}

#endif
