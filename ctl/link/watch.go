package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Change is a set of kinds of change in a network namespace.
type Change uint8

// The kinds of change.
const (
	LinkChange     Change = 1 << iota // a device came, went, or changed its state
	DownChange                        // a device that is no port of another went down: its routes go without a message
	AddressChange                     // an IPv4 address came or went
	RouteChange                       // an IPv4 route, rule or nexthop changed
	GatewayChange                     // a gateway answers from another hardware address
	RulesetChange                     // an nftables transaction was committed (iptables-nft included)
	QueueingChange                    // a qdisc or a tc filter came or went
	IPv6Change                        // of IPv6: an address, a route, a rule, or a gateway's hardware address
	anyChange      = ^Change(0)
)

// Groups of NETLINK_NETFILTER; x/sys has no name for it.
const nfnlgrpNftables = 7

// watchBuffer is the size of the socket buffer, in bytes. The ruleset of a busy
// node is some hundred kilobytes of messages. An overflow is reported as every
// change.
const watchBuffer = 1 << 20

// Watcher reports changes in the network namespace in which it was made. It
// merges changes until they are taken, so a slow reader misses none.
type Watcher struct {
	wake    chan struct{}
	sockets []*nl.NetlinkSocket
	conn    *Conn // for reading gateways, in the watched namespace
	running sync.WaitGroup

	mu      sync.Mutex
	pending Change
	closed  bool

	gateways map[netip.Addr]string // next hop → last hardware address, "" unknown; see onLink
	carriers map[int32]bool        // by ifindex: whether the device was running
	addrs6   map[netip.Addr]bool   // the host's, as onLink; only for the loop of receive
}

// Watch subscribes to changes in the current network namespace. The caller
// calls Close.
func Watch() (*Watcher, error) {
	w := &Watcher{wake: make(chan struct{}, 1), gateways: map[netip.Addr]string{}, carriers: map[int32]bool{}, addrs6: map[netip.Addr]bool{}}
	var err error
	if w.conn, err = Open(); err != nil {
		return nil, err
	}
	route, err := w.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("subscribing to routes and links: %w", err)
	}
	rules, err := w.subscribe(unix.NETLINK_NETFILTER, nfnlgrpNftables)
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("subscribing to nftables: %w", err)
	}
	// After the subscription, so that no change is missed in between.
	w.readGateways()
	if err := w.readCarriers(); err != nil {
		w.Close()
		return nil, err
	}
	w.running.Go(func() { w.receive(route, w.routeChange) })
	w.running.Go(func() { w.receive(rules, rulesetChange) })
	return w, nil
}

// Ready returns a channel that is readable when Take has changes to return.
func (w *Watcher) Ready() <-chan struct{} { return w.wake }

// Take returns the changes since the last Take, or 0.
func (w *Watcher) Take() Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.pending
	w.pending = 0
	return c
}

// Close stops the watcher.
func (w *Watcher) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	for _, s := range w.sockets {
		s.Close()
	}
	w.running.Wait()
	w.conn.Close()
}

func (w *Watcher) subscribe(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(protocol, groups...)
	if err != nil {
		return nil, err
	}
	w.sockets = append(w.sockets, s)
	// Best effort: the default buffer works too, but overflows earlier.
	_ = s.SetReceiveBufferSize(watchBuffer, false)
	return s, nil
}

func (w *Watcher) note(c Change) {
	if c == 0 {
		return
	}
	w.mu.Lock()
	w.pending |= c
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default: // already signalled
	}
}

// receive reads a socket until Close.
func (w *Watcher) receive(s *nl.NetlinkSocket, classify func(syscall.NetlinkMessage) Change) {
	for {
		messages, _, err := s.Receive()
		if err != nil {
			if w.isClosed() || errors.Is(err, os.ErrClosed) {
				return
			}
			// ENOBUFS: messages were lost, so anything may have changed. Other errors
			// are not expected; do not spin on them.
			w.readGateways()
			w.note(anyChange)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		var c Change
		for _, m := range messages {
			c |= classify(m)
		}
		w.note(c)
	}
}

func (w *Watcher) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

func rulesetChange(m syscall.NetlinkMessage) Change {
	// Every transaction ends with NFT_MSG_NEWGEN, when its rules are in force.
	if m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		return RulesetChange
	}
	return 0
}

func (w *Watcher) routeChange(m syscall.NetlinkMessage) Change {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return LinkChange | w.carrierChange(m.Data, m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if ofIPv6(m.Data) {
			return w.addr6Change(m.Data, m.Header.Type == unix.RTM_DELADDR)
		}
		return AddressChange
	case unix.RTM_NEWNETCONF: // conf.*.forwarding
		return LinkChange
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if ofIPv6(m.Data) && !leadsElsewhere(m.Data) {
			return 0
		}
		if m.Header.Type == unix.RTM_NEWROUTE {
			w.learnGateway(m.Data)
		}
		return routeChangeOf(m.Data)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return routeChangeOf(m.Data)
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP: // of either family
		return RouteChange | IPv6Change
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		return QueueingChange
	case unix.RTM_NEWNEIGH:
		return w.neighbourChange(m.Data)
	}
	return 0
}

// ofIPv6 reports whether a message is about IPv6: it begins with the family.
func ofIPv6(data []byte) bool { return len(data) > 0 && data[0] == unix.AF_INET6 }

func routeChangeOf(data []byte) Change {
	if ofIPv6(data) {
		return IPv6Change
	}
	return RouteChange
}

// leadsElsewhere reports whether an IPv6 route is more than what the kernel makes for each
// device and address: routes to link-local addresses, groups and the host itself. They come
// and go with every container of any engine.
func leadsElsewhere(data []byte) bool {
	if len(data) < unix.SizeofRtMsg {
		return false
	}
	r := nl.DeserializeRtMsg(data)
	if r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST && r.Type != unix.RTN_BLACKHOLE && r.Type != unix.RTN_UNREACHABLE && r.Type != unix.RTN_PROHIBIT {
		return false
	}
	dst, _ := attribute(data[unix.SizeofRtMsg:], unix.RTA_DST)
	return !dst.IsLinkLocalUnicast() && !dst.IsMulticast()
}

// addr6Change picks out the addresses that come, go, or are not preferred any more. The
// kernel also tells of each router advertisement that prolongs an address, and of the
// link-local address of each device of any engine.
func (w *Watcher) addr6Change(data []byte, gone bool) Change {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0
	}
	info := nl.DeserializeIfAddrmsg(data)
	a, ok := attribute(data[unix.SizeofIfAddrmsg:], unix.IFA_ADDRESS)
	if !ok || a.IsLinkLocalUnicast() {
		return LinkChange
	}
	const settled = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	key, usable := a.WithZone(fmt.Sprint(info.Index)), info.Flags&settled == 0
	before, known := w.addrs6[key]
	if gone {
		delete(w.addrs6, key)
		return LinkChange | IPv6Change
	}
	w.addrs6[key] = usable
	if known && before == usable {
		return 0
	}
	return LinkChange | IPv6Change
}

// attribute finds an address among the attributes of a message.
func attribute(data []byte, kind uint16) (netip.Addr, bool) {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, a := range attrs {
		if a.Attr.Type == kind {
			return netip.AddrFromSlice(a.Value)
		}
	}
	return netip.Addr{}, false
}

// onLink is an address on the link of a device: link-local addresses are the same on many.
func onLink(a netip.Addr, index int) netip.Addr {
	if a = a.Unmap(); a.IsLinkLocalUnicast() {
		return a.WithZone(fmt.Sprint(index))
	}
	return a
}

// carrierChange picks out devices that went down or are gone. Ports of bridges
// do not count: no route leads through them, and containers come and go.
func (w *Watcher) carrierChange(data []byte, gone bool) Change {
	if len(data) < unix.SizeofIfInfomsg {
		return 0
	}
	info := nl.DeserializeIfInfomsg(data)
	now := !gone && info.Flags&unix.IFF_UP != 0 && info.Flags&unix.IFF_LOWER_UP != 0
	w.mu.Lock()
	before := w.carriers[info.Index]
	if w.carriers[info.Index] = now; gone {
		delete(w.carriers, info.Index)
	}
	w.mu.Unlock()
	if now || !before {
		return 0
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return DownChange
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFLA_MASTER {
			return 0
		}
	}
	return DownChange
}

// readCarriers notes which devices are running.
func (w *Watcher) readCarriers() error {
	entries, err := w.conn.List()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range entries {
		w.carriers[int32(e.Index)] = e.Carrier
	}
	return nil
}

// neighbourChange picks out gateways whose hardware address changed from all
// other neighbour messages: containers, probes, states.
func (w *Watcher) neighbourChange(data []byte) Change {
	n, err := netlink.NeighDeserialize(data)
	if err != nil || n.Family != unix.AF_INET && n.Family != unix.AF_INET6 || len(n.HardwareAddr) == 0 {
		return 0
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return 0
	}
	hop := onLink(ip, n.LinkIndex)
	w.mu.Lock()
	defer w.mu.Unlock()
	before, isGateway := w.gateways[hop]
	now := n.HardwareAddr.String()
	if !isGateway || before == now {
		return 0
	}
	w.gateways[hop] = now
	switch {
	case before == "":
		return 0 // first seen: no flow can have used an older one
	case hop.Is6():
		return IPv6Change
	}
	return GatewayChange
}

// learnGateway adds the next hops of a new route. It reads one message and does
// not dump the table: a router with a million routes gets thousands of messages
// a second. A next hop that has lost its routes stays in the map, which does no
// harm.
func (w *Watcher) learnGateway(data []byte) {
	if len(data) < unix.SizeofRtMsg {
		return
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return
	}
	var hop netip.Addr
	device := 0
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_GATEWAY:
			hop, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			if len(a.Value) == 4 {
				device = int(binary.NativeEndian.Uint32(a.Value))
			}
		case unix.RTA_MULTIPATH:
			w.readGateways()
		}
	}
	if !hop.IsValid() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if hop = onLink(hop, device); w.gateways[hop] == "" {
		w.gateways[hop] = ""
	}
}

// readGateways notes every next hop of the routing table. It keeps known
// hardware addresses, so that their next change is noticed.
func (w *Watcher) readGateways() {
	found := map[netip.Addr]string{}
	add := func(ip []byte, device int) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			found[onLink(a, device)] = ""
		}
	}
	for _, family := range families {
		routes, err := routesOfAll(w.conn, family)
		if err != nil {
			return // keep the gateways known so far
		}
		for _, r := range routes {
			add(r.Gw, r.LinkIndex)
			for _, hop := range r.MultiPath {
				add(hop.Gw, hop.LinkIndex)
			}
		}
	}
	neighbours, _ := w.conn.neighbours(netlink.Ndmsg{})
	for _, n := range neighbours {
		a, ok := netip.AddrFromSlice(n.IP)
		if !ok || len(n.HardwareAddr) == 0 {
			continue
		}
		if _, isGateway := found[onLink(a, n.LinkIndex)]; isGateway {
			found[onLink(a, n.LinkIndex)] = n.HardwareAddr.String()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for a, mac := range w.gateways {
		if now, still := found[a]; still && now == "" {
			found[a] = mac
		}
	}
	w.gateways = found
}
