package link

import (
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
	anyChange      = LinkChange | DownChange | AddressChange | RouteChange | GatewayChange | RulesetChange | QueueingChange
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

	gateways map[netip.Addr]string // next hop → last hardware address, "" unknown
	carriers map[int32]bool        // by ifindex: whether the device was running
}

// Watch subscribes to changes in the current network namespace. The caller
// calls Close.
func Watch() (*Watcher, error) {
	w := &Watcher{wake: make(chan struct{}, 1), gateways: map[netip.Addr]string{}, carriers: map[int32]bool{}}
	var err error
	if w.conn, err = Open(); err != nil {
		return nil, err
	}
	route, err := w.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_NEXTHOP)
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
		if len(m.Data) > 0 && m.Data[0] == unix.AF_INET6 {
			return LinkChange
		}
		return AddressChange
	case unix.RTM_NEWNETCONF: // conf.*.forwarding
		return LinkChange
	case unix.RTM_NEWROUTE:
		w.learnGateway(m.Data)
		return RouteChange
	case unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return RouteChange
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		return QueueingChange
	case unix.RTM_NEWNEIGH:
		return w.neighbourChange(m.Data)
	}
	return 0
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
	if err != nil || n.Family != unix.AF_INET || len(n.HardwareAddr) == 0 {
		return 0
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before, isGateway := w.gateways[ip.Unmap()]
	now := n.HardwareAddr.String()
	if !isGateway || before == now {
		return 0
	}
	w.gateways[ip.Unmap()] = now
	if before == "" {
		return 0 // first seen: no flow can have used an older one
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
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_GATEWAY:
			if ip, ok := netip.AddrFromSlice(a.Value); ok {
				w.mu.Lock()
				if _, known := w.gateways[ip]; !known {
					w.gateways[ip] = ""
				}
				w.mu.Unlock()
			}
		case unix.RTA_MULTIPATH:
			w.readGateways()
		}
	}
}

// readGateways notes every next hop of the routing table. It keeps known
// hardware addresses, so that their next change is noticed.
func (w *Watcher) readGateways() {
	routes, err := dump(func() ([]netlink.Route, error) {
		return w.conn.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return // keep the gateways known so far
	}
	found := map[netip.Addr]string{}
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			found[a.Unmap()] = ""
		}
	}
	for _, r := range routes {
		add(r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	neighbours, _ := w.conn.neighbours()
	for _, n := range neighbours {
		a, ok := netip.AddrFromSlice(n.IP)
		if !ok || len(n.HardwareAddr) == 0 {
			continue
		}
		if _, isGateway := found[a.Unmap()]; isGateway {
			found[a.Unmap()] = n.HardwareAddr.String()
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
