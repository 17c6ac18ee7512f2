// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The entry point for requests of the control plane. Part of tc.bpf.c. */
#include "lib/control.h"

SEC("tc")
int fbr_control(struct __sk_buff *skb)
{
	struct fbr_request r;

	if (bpf_skb_load_bytes(skb, 0, &r, sizeof(r)) || fbr_serve(skb, &r))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &r, sizeof(r), 0) ? -1 : 0;
}
