/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Leases. A direction of a flow may use the fast path for lease_len jiffies after the
 * kernel last let one of its packets through to the last hook. fbr_conf.revoked_at ends all
 * leases at once. The control plane sets it (a new rule, another route), and so do the
 * programs (hop.h).
 */
#ifndef FBR_LEASE_H
#define FBR_LEASE_H

#include "clock.h"
#include "config.h"
#include "device.h"
#include "flow.h"
#include "instance.h"
#include "nat.h"

/* Whether a lease of len jiffies, granted at this jiffy, is still valid. */
static __always_inline bool fbr_lease_lasts(__u64 granted, __u32 len, const struct fbr_conf *c,
					    __u64 now)
{
	return granted > c->revoked_at && now - granted < len;
}

static __always_inline bool fbr_lease_valid(const struct fbr_flow *f, const struct fbr_conf *c,
					    __u64 now)
{
	return fbr_lease_lasts(f->granted, f->lease_len, c, now);
}

/* Ends all leases, unless that was done less than a second ago: leases that were granted
 * since then are short.
 */
static __always_inline void fbr_revoke(struct fbr_conf *c)
{
	__u64 now = fbr_now();

	if (now - c->revoked_at >= cfg_hz)
		*(volatile __u64 *)&c->revoked_at = now;
}

/* The length of a new lease in jiffies. It varies by +-25 %, so that many leases do not end
 * at the same moment. For a second after leases were revoked it is about a second at most. So a
 * change that follows another one is not missed, and whatever a peer outside makes the
 * programs revoke, a flow asks the kernel hardly more than once a second.
 */
static __always_inline __u32 fbr_lease_len(const struct fbr_conf *c, __u64 now)
{
	__u32 len = now - c->revoked_at < cfg_hz && c->lease > cfg_hz ? cfg_hz : c->lease;

	return len - len / 4 + ((len / 2) * (fbr_random() & 255) >> 8);
}

/* Ends the lease: the next packet takes the kernel's path. */
static __always_inline void fbr_lease_end(struct fbr_flow *f)
{
	*(volatile __u64 *)&f->granted = 0;
}

/* Grants a lease to the entry under k, for packets that come in by the device iif and leave by
 * oif. macs points to 12 bytes, destination and source,
 * from the frame that the kernel built. If the MACs have changed, the old lease is ended
 * first, so that no other CPU sends with a half-written pair. The lease lasts at most left
 * jiffies: no lease outlives its session.
 */
static __always_inline void fbr_lease_grant(const struct fbr_flow_key *k, struct fbr_flow *f,
					    const struct fbr_conf *c, const __u8 *macs, __u32 iif,
					    __u32 oif, __u16 mtu, __u64 now, __u64 left)
{
	__u32 *old = (__u32 *)f->macs, *new = (__u32 *)macs, len;

	if (!c->lease)
		return;
	if (old[0] != new[0] || old[1] != new[1] || old[2] != new[2] || f->iif != iif ||
	    f->oif != oif) {
		fbr_lease_end(f);
		barrier();
		old[0] = new[0];
		old[1] = new[1];
		old[2] = new[2];
		f->iif = iif;
		f->oif = oif;
		barrier();
	}
	f->mtu = mtu;
	len = fbr_lease_len(c, now);
	f->lease_len = len < left ? len : left;
	f->seen = now;
	f->no_xdp = 0;
	barrier();
	/* A full barrier: whoever deletes the entry clears the key first, then the lease. */
	__sync_lock_test_and_set(&f->granted, now);
	/* The entry may have been deleted, and may be another flow's by now. */
	if (!fbr_flow_is(f, k))
		fbr_lease_end(f);
}

/* The flow under the key k of a packet from outside, come by the uplink u, if the packet may
 * go straight to its port; otherwise NULL. Sets *port.
 */
static __always_inline struct fbr_flow *fbr_inbound_hit(const struct fbr_flow_key *k,
							const struct fbr_dev *u,
							const struct fbr_conf *c, __u64 now,
							struct fbr_dev **port)
{
	struct fbr_flow *f = fbr_flow_hit(k);

	if (!f || f->kind != FBR_IN || f->iif != u->ifindex || !fbr_lease_valid(f, c, now))
		return NULL;
	*port = fbr_dev_get(f->oif);
	return *port && !((*port)->flags & FBR_DEV_KERNEL_ROUTED) ? f : NULL;
}

/* Records that the flow is alive, at most once a second, so that the cache line stays clean. */
static __always_inline void fbr_flow_seen(struct fbr_flow *f, __u64 now, __u32 hz)
{
	if (now - f->seen >= hz)
		f->seen = now;
}

#endif
