// Package datapath owns everything that is BPF. It loads the programs of bpf/,
// attaches them to devices (by ifindex), and reads and writes their maps. It
// does not know netlink or names; its callers do not know BPF.
//
// # Objects and their lifetime
//
// A Datapath is the datapath of one host network namespace. Below its directory
// on bpffs:
//
//	fbr_*              the maps, pinned under their own names
//	progs/fbr_*        the programs, so that attaching needs no verifier
//	links/IFINDEX-in   tcx links of a port or uplink, likewise -out
//	links/guard        the netfilter links
//	links/input
//	links/defrag
//
// Nothing needs a process: links and maps live as long as their pins. Every
// command opens the pins, works and closes them. Create builds in a directory
// beside the final one and renames it, so the final one is complete or absent.
//
// The caller holds one lock per instance around every mutating call. This
// package takes no lock.
package datapath
