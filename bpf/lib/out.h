/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Translation of what containers send, on the kernel's path. */
#ifndef FBR_OUT_H
#define FBR_OUT_H

#include "claim.h"
#include "clock.h"
#include "config.h"
#include "create.h"
#include "ct.h"
#include "device.h"
#include "dnat.h"
#include "extport.h"
#include "flow.h"
#include "hop.h"
#include "instance.h"
#include "lease.h"
#include "local.h"
#include "nat.h"
#include "nport.h"
#include "parse.h"
#include "publish.h"
#include "qdisc.h"
#include "reason.h"
#include "rewrite.h"
#include "scratch.h"
#include "session.h"
#include "track.h"

/* The live outbound entry for k, or NULL. Removes an entry that has expired, that belongs
 * to another port (the address has a new owner), or that has another external address (the
 * uplink's has changed).
 */
static __always_inline struct fbr_flow *fbr_flow_live(struct __sk_buff *skb,
						      const struct fbr_dev *u,
						      struct fbr_flow_key *k, __u32 pif,
						      fbr_addr_arg ext)
{
	struct fbr_flow *f = fbr_flow_get(k);
	struct fbr_session *s;
	__u32 slot, state;

	if (!f || !(f->kind & FBR_OUT))
		return NULL;
	slot = f->sess;
	s = fbr_sess_get(slot);
	state = s ? fbr_sess_state(s) : FBR_FREE;
	if (f->iif == pif && fbr_sess_lasts(f) &&
	    (fbr_addr_zero(FBR_ADDR(ext)) || fbr_addr_eq(f->addr, FBR_ADDR(ext)) ||
	     /* Clients may use any address of the host. */
	     (u && fbr_flow_stays(skb, f, u, ext, s && (s->bits & FBR_S_PUBLISHED)))))
		return f;
	if (s && fbr_sess_claim(s, state))
		fbr_sess_free(slot);
	return NULL;
}

/* A published port answers from the host's port even if its flow has gone. */
__fbr_global6 int fbr_pub_answer(struct fbr_new *n)
{
	if (!n)
		return 0;

	struct fbr_bind_key k = { .ip = n->fwd.saddr, .port = n->fwd.sport, .proto = n->fwd.proto };
	struct fbr_bind_key *host = bpf_map_lookup_elem(&fbr_pub_of, &k);

	/* Towards an address of the host (hairpin.h) the source must be that address. */
	if (!host || (fbr_addr_eq(n->ext, n->fwd.daddr) && !fbr_addr_zero(host->ip) &&
		      !fbr_addr_eq(host->ip, n->ext)))
		return 0;
	n->published = true;
	n->eport = host->port;
	if (!fbr_addr_zero(host->ip))
		n->ext = host->ip;
	return 0;
}

/* Creates the session of a container's first packet k, which leaves from the address ext, by
 * uplink (ifindex; 0: it does not leave). Returns as fbr_sess_create().
 */
static __always_inline enum fbr_reason fbr_out_create(struct __sk_buff *skb,
						      const struct fbr_flow_key *k,
						      fbr_addr_arg ext, __u32 pif, __u32 uplink)
{
	struct fbr_net *net = fbr_net_get(k->saddr);
	struct fbr_conf *c = fbr_conf_get();
	FBR_SCRATCH_ZERO(fbr_new, new);

	if (!new || fbr_held())
		return FBR_UNSUPPORTED;
	new->fwd = *k;
	new->ext = FBR_ADDR(ext);
	new->pif = pif;
	fbr_new_leaves(new, uplink);
	new->net = net ? net->flags : 0;
	/* Towards an address of the host (hairpin.h) the source is that address. */
	new->own = (new->net &FBR_NET_OWN) && fbr_addr_eq(FBR_ADDR(ext), k->saddr);
	new->eport = k->sport;
	if (c && c->published)
		fbr_pub_answer(new);
	/* An answer, to whoever has asked. The question's session has gone. */
	new->outside =
		new->published && k->proto == IPPROTO_UDP && !fbr_addr_eq(FBR_ADDR(ext), k->daddr);
	return fbr_sess_create(skb, new);
}

/* Records that a container has sent p through its flow f. keeps: p also keeps the mapping alive. */
static __always_inline void fbr_out_seen(struct __sk_buff *skb, struct fbr_flow *f,
					 const struct fbr_pkt *p, bool keeps)
{
	__u64 now = fbr_now();
	struct fbr_session *s;
	struct fbr_nport *np;

	fbr_sess_track(skb, f->sess, p, true);
	if (p->tcp_flags & TCP_RST)
		return;
	f->seen = now;
	s = keeps ? fbr_sess_get(f->sess) : NULL;
	np = s && (s->bits & FBR_S_OUT_ONLY) ? fbr_nport_at(p->proto, f->port) : NULL;
	if (np)
		np->used_at = now;
}

/* What a packet may do to its flow. */
enum fbr_snat_mode {
	FBR_SNAT_FORWARDED = 1, /* passed FORWARD from its own bridge: may create and lease */
	FBR_SNAT_HOST = 2,      /* the host's own, with a container's source: existing flows only */
	/* From a network that is not translated. Only an answer of a published port is
	 * translated; any other packet is FBR_NOT_OURS and untouched.
	 */
	FBR_SNAT_ROUTED = 3,
	/* The kernel has translated it (dnat.h). FBR_NOT_OURS if it belongs to no session that
	 * says the same and no publication leads back.
	 */
	FBR_SNAT_DONE = 4,
};

/* Whether the container's port that k comes from is published as the source of p. */
__fbr_global6 bool fbr_pub_leads(const struct fbr_flow_key *k, const struct fbr_pkt *p)
{
	if (!k || !p)
		return false;

	struct fbr_bind_key at = { .ip = k->saddr, .port = k->sport, .proto = k->proto };
	struct fbr_bind_key *host = bpf_map_lookup_elem(&fbr_pub_of, &at);

	return host && host->port == p->sport &&
	       (fbr_addr_zero(host->ip) || fbr_addr_eq(host->ip, p->saddr));
}

/* Translates the source of a container's packet at the uplink's egress. Returns FBR_NONE if
 * it is translated, or the reason to drop it.
 */
__fbr_global enum fbr_reason fbr_snat(struct __sk_buff *skb, const struct fbr_pkt *p,
				      const struct fbr_dev *u, const struct fbr_dev *port,
				      __u32 mode)
{
	if (!p || !u || !port)
		return FBR_UNSUPPORTED;

	bool routed = mode == FBR_SNAT_ROUTED, done = mode == FBR_SNAT_DONE;
	bool forwarded = mode == FBR_SNAT_FORWARDED || ((routed || done) && skb->ingress_ifindex);
	__u64 now = fbr_now();
	struct fbr_conf *c = fbr_conf_get();
	struct fbr_session *s;
	struct fbr_flow *f;
	enum fbr_reason why;
	fbr_addr ext = FBR_NO_ADDR;
	__u16 mtu = 0;
	__u32 bits, secs;
	FBR_SCRATCH(fbr_flow_key, key);

	if (!c || !key || (p->kind != FBR_L4_PORTS && p->kind != FBR_L4_ECHO_REQ))
		return FBR_UNSUPPORTED;
	fbr_key(key, p);
	if (done && !fbr_dnat_answers(bpf_cast_to_kern_ctx(skb), key))
		return FBR_NOT_OURS;
	if ((routed || (done && !fbr_pub_leads(key, p))) && !fbr_flow_exists(key))
		return FBR_NOT_OURS;
	if (forwarded) {
		mtu = fbr_exit(skb, u, port, key, &ext);
		if (fbr_addr_zero(ext))
			return FBR_NO_UPLINK;
	}
	f = fbr_flow_live(skb, u, key, port->ifindex, FBR_ARG(ext));
	if (!f && (routed || (done && !fbr_pub_leads(key, p))))
		return FBR_NOT_OURS;
	/* An answer to a SYN begins no session: whoever has asked asks again. */
	if (!f && (!forwarded || (p->tcp_flags & TCP_RST) || fbr_syn_ack(p)))
		return FBR_UNSUPPORTED;
	if (!f) {
		why = fbr_out_create(skb, key, FBR_ARG(ext), port->ifindex, u->ifindex);
		/* Another CPU may just have created the same flow. */
		f = fbr_flow_get(key);
		if (!f)
			return why ? why : FBR_NAT_FULL;
	}
	if (done && (!fbr_addr_eq(f->addr, p->saddr) || f->port != p->sport))
		return FBR_NOT_OURS;
	fbr_out_seen(skb, f, p, forwarded);
	s = fbr_sess_get(f->sess);
	if (!s)
		return FBR_NAT_FULL;
	bits = s->bits;
	secs = fbr_timeout(key->proto, key->dport, bits);
	if (forwarded) {
		if (!p->frag && !(port->flags & FBR_DEV_KERNEL_ROUTED) && !fbr_closed_bits(bits) &&
		    !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) && !fbr_ct_helped(skb) &&
		    !fbr_device_sorts(skb)) {
			__u8 macs[12] = {};

			/* A redirect to a device without L2 header removes the frame's. */
			if (!p->l3 || (fbr_hop_known(skb, u->ifindex, FBR_ARG(p->daddr)) &&
				       !bpf_skb_load_bytes(skb, 0, macs, sizeof(macs))))
				fbr_lease_grant(key, f, c, macs, port->ifindex, u->ifindex, mtu,
						now, (__u64)secs * cfg_hz);
		}
		fbr_ct_extend(skb, key, secs);
	}
	if (done)
		return FBR_NONE;
	/* Point of no return. */
	return fbr_rewrite(skb, p->l3, true, FBR_ARG(f->addr), f->port) ? FBR_UNSUPPORTED
									: FBR_NONE;
}

/* The port (ifindex) whose container has sent a packet that leaves with an address of the
 * host, since the kernel translates its connection's destination; 0: it is none of ours.
 */
__fbr_global __u32 fbr_dnat_port(struct __sk_buff *skb, const struct fbr_pkt *p)
{
	struct fbr_flow_key k = {};
	struct fbr_dev *port;

	if (!p || p->kind != FBR_L4_PORTS || !fbr_dnat_answers(bpf_cast_to_kern_ctx(skb), &k))
		return 0;
	port = fbr_host_port(FBR_ARG(k.saddr));
	return port ? port->ifindex : 0;
}

/* Handles such a packet. Returns FBR_NOT_OURS if it answers nothing of ours. */
static __always_inline enum fbr_reason fbr_dnat_out(struct __sk_buff *skb, const struct fbr_pkt *p,
						    const struct fbr_dev *u)
{
	struct fbr_dev *port = fbr_dev_get(fbr_dnat_port(skb, p));
	enum fbr_reason why;

	if (!port)
		return FBR_NOT_OURS;
	why = fbr_snat(skb, p, u, port, FBR_SNAT_DONE);
	if (why == FBR_NOT_OURS && fbr_dnat_entered(bpf_cast_to_kern_ctx(skb)))
		return FBR_UNSUPPORTED; /* it is published no more */
	return why;
}

#endif
