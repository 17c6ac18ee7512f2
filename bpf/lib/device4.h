/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a device has of IPv4 (device.h). */
#ifndef FBR_DEVICE4_H
#define FBR_DEVICE4_H

#define FBR_IP_ROUTED     FBR_DEV_ROUTED
#define FBR_IP_EXCEPTS    FBR_DEV_EXCEPTS
#define FBR_IP_WAYS       FBR_DEV_WAYS
#define FBR_IP_CLOSED     FBR_DEV_CLOSED
#define FBR_OPENED(c)     ((c)->opened)
/* An uplink that is open or not as the devices that are none. */
#define FBR_AS_OTHERS(d)  ((d)->flags & FBR_DEV_SIDE)

/* Port: its container's address; uplink: the primary one; bridge: the gateway's. */
#define fbr_dev_ip(d)     ((d)->ip)

/* Whether it has one, and the address as an argument of a global function */
#define fbr_dev_has_ip(d) (d)->ip
#define FBR_DEV_IP_ARG(d) ((d)->ip)

/* Whether a packet that is not IPv4 is left to the IPv6 programs, which stand behind these on d
 * and count it.
 */
static __always_inline bool fbr_other_family(struct __sk_buff *skb, const struct fbr_dev *d)
{
	return (d->flags & FBR_DEV_IP6) && skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* Solicitations of neighbours are ARP, which is the kernel's. */
#define fbr_nd_proxy(skb, u, p) 0

/* Whether an address is that of the port's container. */
#define fbr_port_is(port, addr) ((addr) == (port)->ip)

#endif
