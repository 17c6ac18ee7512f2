/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Requests of the control plane. */
#ifndef FBR_CONTROL_H
#define FBR_CONTROL_H

#include "allowed.h"
#include "carry.h"
#include "clock.h"
#include "extport.h"
#include "nat.h"
#include "pool.h"
#include "session.h"

/* A request is run through BPF_PROG_TEST_RUN, so it sees the maps as the other programs do.
 * The packet is a struct fbr_request.
 */
enum fbr_op {
	/* Reads the clock: arg = jiffies. */
	FBR_OP_NOW = 1,
	/* Ends the sessions of device ifindex (0: of all) in slots [from, to); arg = how many. */
	FBR_OP_FLUSH = 2,
	/* Asks whether the kernel knows BPF_FIB_LOOKUP_SRC: arg = what bpf_fib_lookup() returns. */
	FBR_OP_FIB = 3,
	/* Lets mappings have the ports [from, to) of a class. arg: enum fbr_class. */
	FBR_OP_OPEN = 4,
	/* Takes these ports away from new mappings. */
	FBR_OP_SHUT = 5,
	/* Brings over the session in the struct fbr_carried that follows. from: it may be made
	 * if it is not there. arg = enum fbr_carry_result.
	 */
	FBR_OP_CARRY = 6,
	/* As FBR_OP_FLUSH, for addresses that the device may not use (any more). */
	FBR_OP_FORBID = 7,
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
	bool forbidden; /* only sessions of addresses that the device may not use */
	__u64 n;
};

static long fbr_flush_one(__u64 i, struct fbr_flush *w)
{
	__u32 slot = w->slot++;
	struct fbr_session *s = fbr_sess_get(slot);
	struct fbr_dev *p = w->forbidden ? fbr_dev_get(w->ifindex) : NULL;

	if (s && p && (s->pif != p->ifindex || fbr_port_has(p, FBR_ARG(s->fwd.saddr))))
		return 0;
	if (s && (!w->ifindex || s->pif == w->ifindex || s->payer == w->ifindex) &&
	    fbr_sess_claim(s, fbr_sess_state(s))) {
		fbr_sess_free(slot);
		w->n++;
	}
	return 0;
}

struct fbr_ports {
	__u32 port;
	enum fbr_class class;
	bool open;
};

static long fbr_ports_one(__u64 i, struct fbr_ports *w)
{
	struct fbr_pool *pool = fbr_pool_of(w->class);

	if (pool)
		fbr_pool_set(pool, w->port, w->open);
	w->port++;
	return 0;
}

/* What bpf_fib_lookup() says to BPF_FIB_LOOKUP_SRC. An unknown flag gives -EINVAL, whatever
 * the routes are.
 */
static __noinline long fbr_fib_source(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = { .family = FBR_FAMILY, .ifindex = 1 };

	return bpf_fib_lookup(skb, &fib, sizeof(fib),
			      BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SRC |
				      BPF_FIB_LOOKUP_SKIP_NEIGH);
}

static __noinline int fbr_serve(struct __sk_buff *skb, struct fbr_request *r)
{
	struct fbr_flush w = {
		.ifindex = r->ifindex,
		.slot = r->from,
		.forbidden = r->op == FBR_OP_FORBID,
	};
	struct fbr_ports ports = { .port = r->from, .class = r->arg, .open = r->op == FBR_OP_OPEN };

	switch (r->op) {
	case FBR_OP_NOW:
		r->arg = fbr_now();
		return 0;
	case FBR_OP_FLUSH:
	case FBR_OP_FORBID:
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
		r->arg = fbr_fib_source(skb);
		return 0;
	}
	return -1;
}

#endif
