/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The two entries of each session, and how they are found.
 *
 * The entries are in fbr_flow, at the session's slot. The hash table fbr_flow_of says which
 * key has an entry, and an insert into it makes the key unique. But with many flows, a
 * lookup there costs a packet two or three cache misses. So fbr_near remembers where the
 * last two keys of each hash were found. Each entry carries its key, and a packet only uses
 * an entry that has the packet's own key, whatever fbr_near says.
 *
 * Only the owner of a slot, who took it from fbr_free or claimed its session, changes an
 * entry's key. The key is set after the insert into fbr_flow_of, and cleared before the
 * delete. So fbr_near never leads to an entry under a key that meanwhile has another entry.
 * An entry may become another flow's while it is read. So a hit compares the key and checks
 * the lease again after it has read everything else, and a renewal compares the key after
 * it has granted.
 */
#ifndef FBR_FLOW_H
#define FBR_FLOW_H

#include "config.h"
#include "nat.h"

#define FBR_FLOW_NONE  0xffffffff
#define FBR_NEAR_INDEX (2 * FBR_FLOWS_LIMIT - 1) /* mask, in fbr_near.entry */

/* The entry with this index, in use or not. */
static __always_inline struct fbr_flow *fbr_flow_at(__u32 i)
{
	return bpf_map_lookup_elem(&fbr_flow, &i);
}

static __always_inline bool fbr_flow_is(const struct fbr_flow *f, const struct fbr_flow_key *k)
{
	return fbr_words_same((const volatile __u64 *)&f->key, (const __u64 *)k);
}

/* Neighbouring source ports hash into one cache line of fbr_near. Connections that one
 * address opens to another in succession have neighbouring ports. Which keys collide
 * differs between instances, and each key that collides costs a lookup in fbr_flow_of.
 */
static __always_inline __u32 fbr_flow_hash(const struct fbr_flow_key *k)
{
	const __u64 *words = (const __u64 *)k, last = words[FBR_KEY_WORDS - 1];
	const __u64 line = 7; /* eight entries a line: low bits of the source port in host order */
	__u64 near = last >> 8 & line, h;

	h = (fbr_addrs_hash(words, cfg_mark) ^ (last & ~(line << 8))) * 0xd6e8feb86659fd93;
	return (h ^ h >> 32) ^ near;
}

/* What fbr_near knows about keys with the hash h. */
static __always_inline struct fbr_near *fbr_near_get(__u32 h)
{
	__u32 at = h & cfg_near_mask;

	return bpf_map_lookup_elem(&fbr_near, &at);
}

/* The index of k's entry if fbr_near knows it; otherwise any index. */
static __always_inline __u32 fbr_near_index(const struct fbr_near *n, __u32 h)
{
	__u32 i = n->entry[0];

	if ((i ^ h) & ~FBR_NEAR_INDEX)
		i = n->entry[1];
	return i & FBR_NEAR_INDEX;
}

/* The index of the entry under k, or FBR_FLOW_NONE. fbr_near remembers it. */
__fbr_global __u32 fbr_flow_find(const struct fbr_flow_key *k)
{
	if (!k)
		return FBR_FLOW_NONE;

	__u32 h = fbr_flow_hash(k), i, *found;
	struct fbr_near *n = fbr_near_get(h);
	struct fbr_flow *f;

	if (!n)
		return FBR_FLOW_NONE;
	i = fbr_near_index(n, h);
	f = fbr_flow_at(i);
	if (f && fbr_flow_is(f, k))
		return i;
	found = bpf_map_lookup_elem(&fbr_flow_of, k);
	if (!found)
		return FBR_FLOW_NONE;
	i = (h & ~FBR_NEAR_INDEX) | *found;
	if (n->entry[0] != i)
		*(volatile __u64 *)n = i | (__u64)n->entry[0] << 32;
	return *found;
}

/* The entry under k, or NULL. */
static __always_inline struct fbr_flow *fbr_flow_get(const struct fbr_flow_key *k)
{
	return fbr_flow_at(fbr_flow_find(k));
}

/* The same for a hit: makes no call if fbr_near knows the entry. */
static __always_inline struct fbr_flow *fbr_flow_hit(const struct fbr_flow_key *k)
{
	__u32 h = fbr_flow_hash(k);
	struct fbr_near *n = fbr_near_get(h);
	struct fbr_flow *f = n ? fbr_flow_at(fbr_near_index(n, h)) : NULL;

	return f && fbr_flow_is(f, k) ? f : fbr_flow_get(k);
}

static __always_inline bool fbr_flow_exists(const struct fbr_flow_key *k)
{
	return bpf_map_lookup_elem(&fbr_flow_of, k) != NULL;
}

/* The entries of the session in slot, or NULL. */
static __always_inline struct fbr_flow *fbr_flow_out(__u32 slot)
{
	struct fbr_flow *f = fbr_flow_at(2 * slot);

	return f && f->key.proto ? f : NULL;
}

static __always_inline struct fbr_flow *fbr_flow_in(__u32 slot)
{
	struct fbr_flow *f = fbr_flow_at(2 * slot + 1);

	return f && f->key.proto ? f : NULL;
}

/* Clears the key and the lease. */
static __always_inline void fbr_flow_void(struct fbr_flow *f)
{
	((volatile __u64 *)&f->key)[FBR_KEY_WORDS - 1] = 0;
	*(volatile __u64 *)&f->granted = 0;
}

/* The entry at index i, emptied, to be filled and then published. The caller owns its slot. */
static __always_inline struct fbr_flow *fbr_flow_new(__u32 i)
{
	struct fbr_flow *f = fbr_flow_at(i);

	if (f) {
		fbr_flow_void(f);
		barrier();
	}
	return f;
}

/* Enters f, which is at index i, under k. Returns 0, -EEXIST if the key has an entry
 * already, or another error.
 */
static __always_inline long fbr_flow_publish(struct fbr_flow *f, __u32 i,
					     const struct fbr_flow_key *k)
{
	long err = bpf_map_update_elem(&fbr_flow_of, k, &i, BPF_NOEXIST);

	if (err)
		return err;
	fbr_words_set((volatile __u64 *)&f->key, (const __u64 *)k);
	return 0;
}

/* Removes the entry at index i. The caller owns its slot. */
static __always_inline void fbr_flow_remove(__u32 i)
{
	struct fbr_flow *f = fbr_flow_at(i);
	struct fbr_flow_key k;

	if (!f || !f->key.proto)
		return;
	k = f->key;
	fbr_flow_void(f);
	bpf_map_delete_elem(&fbr_flow_of, &k);
}

#endif
