// Package lab builds throw-away hosts from network namespaces: a host with an
// eth0, an outside with servers behind it, and empty namespaces as containers.
// Tests, `fastbr demo` and the benchmarks share it, so they all have the same
// topology:
//
//	c1 ─┐
//	c2 ─┤  host (empty, or a plain kernel bridge) eth0 ───── eth0 outside
//	cN ─┘       198.51.100.1/24                              198.51.100.2/24
//	                                                         192.0.2.11/32, 192.0.2.12/32
//	            eth1 (with two uplinks) ──────────────────── eth0 second outside
//	            203.0.113.1/24                               203.0.113.2/24
//	                                                         192.0.2.21/32, 192.0.2.22/32
//
// With Options.Router the outside end of eth0 is a switch:
//
//	host eth0 ── switch ─┬─ outside (as above)
//	                     ├─ router 198.51.100.3 ── (MTU 1280) ── far 192.0.2.130
//	                     └─ LAN neighbour 198.51.100.66
//
// With Options.IPv6 there is the same once more, from 2001:db8::/32: the host has
// 2001:db8:1::1/64, the outside 2001:db8:1::2/64 and the servers 2001:db8:f::11 and
// ::12. Or the outside is a router that advertises 2001:db8:1::/64, and the host
// makes its own address and route. Without it, IPv6 is off.
//
// A capture runs on the outside end of every uplink as long as the lab lives.
// It records what must never arrive there: packets with a container's address
// as source, and ICMP errors that quote one. See Capture.
//
// Everything needs root. Nothing touches a device of the caller's namespace:
// every device is created inside a namespace of the lab.
//
// The package uses vishvananda/netlink itself and not ctl/link: a lab must be
// able to judge ctl/link, and it builds things that fastbr never builds
// (foreign bridges, second outsides). It makes no dump requests.
package lab
