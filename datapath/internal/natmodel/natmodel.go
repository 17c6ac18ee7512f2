// Package natmodel is a second implementation of the NAT of bpf/lib, as plain
// as possible: no bytes, no checksums, no concurrency, and the caller supplies
// time and randomness. Tests give the same packets to the model and to the
// programs. Where the two differ, one of them is wrong.
//
// Ports are in host byte order, times in jiffies.
package natmodel

import "net/netip"

// Addr is an address of either family, which are translated alike. The zero Addr is none.
type Addr = netip.Addr

// Proto is an IPv4 protocol number.
type Proto uint8

// The protocols that are translated. ICMP is ICMPv6, too.
const (
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// class returns the index of the protocol's port space.
func (p Proto) class() int {
	switch p {
	case TCP:
		return 0
	case UDP:
		return 1
	default:
		return 2
	}
}

// Flags are the TCP flags, as in the header.
type Flags uint8

// The flags that the NAT reads.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	_
	ACK
)

// Kind is the kind of a packet as the NAT sees it.
type Kind uint8

// Packets of any other kind have no ports and are not translated.
const (
	Other       Kind = iota
	Ports            // TCP and UDP
	EchoRequest      // SPort is the id
	EchoReply        // DPort is the id
	Error            // an ICMP error about Quote
)

// Packet is an IP packet in an Ethernet frame. The NAT leaves Body unchanged.
type Packet struct {
	Kind         Kind
	Proto        Proto
	Src, Dst     Addr
	SPort, DPort uint16
	Flags        Flags
	TTL          uint8
	MACs         [12]byte // destination, source
	Type, Code   uint8    // of an Error
	Quote        *Packet
	Body         Body
}

// Body is the rest of a packet.
type Body struct {
	TOS     uint8
	ID      uint16
	Ack     uint32 // TCP: the acknowledgement number
	Payload int    // bytes
	NoSum   bool   // UDP without a checksum
	Cut     int    // bytes behind the IP header that an Error quotes
}

// Seq returns a TCP packet's sequence number. It is never 0: that would make a
// RST look like the host's.
func (b Body) Seq() uint32 { return uint32(b.ID) | 1<<31 }

// Tuple is the key of a packet.
type Tuple struct {
	Src, Dst     Addr
	SPort, DPort uint16
	Proto        Proto
}

// Tuple returns the packet's tuple.
func (p Packet) Tuple() Tuple { return Tuple{p.Src, p.Dst, p.SPort, p.DPort, p.Proto} }

// Reversed returns the tuple of an answer.
func (t Tuple) Reversed() Tuple { return Tuple{t.Dst, t.Src, t.DPort, t.SPort, t.Proto} }

// Config is fixed for the life of a NAT.
type Config struct {
	HZ                                uint64
	FlowsMax                          int
	FlowsQuota, PortsQuota, HalfQuota int
	WaitingMax                        int
	First                             uint16
	Count                             int
	UDPOneway, UDPTwoway, UDPDNS      uint64 // seconds, and so are the times below
	UDPWaiting, TCPWaiting            uint64
	ICMPQuery                         uint64
	TCPOpen, TCPEstablished           uint64
	TCPHalf, TCPClosing               uint64
	Hold                              uint64
}

// Policy is how a network is translated.
type Policy struct{ EDM, ADF, EIF, Strict bool }

// Network is a bridge with its subnet. It is always masqueraded.
type Network struct {
	Bridge  int
	Subnet  netip.Prefix
	Gateway Addr
	Policy
}

// Device is a container's port.
type Device struct {
	Ifindex int
	IP      Addr
	MACs    [12]byte // of frames to the container: its address, its gateway's
	Net     *Network
	Slow    bool
	Usage
}

// Usage is what a port holds, as the quotas count it.
type Usage struct {
	Sessions, Ports, Half int
	refusedAt             uint64
}

// Action says what happens to a packet.
type Action int32

// The verdicts of the programs.
const (
	Next     Action = -1 // to the kernel
	Drop     Action = 2
	Redirect Action = 7
)

// Reason says why a packet was dropped, in the words of the metrics.
type Reason string

// Verdict is what became of a packet.
type Verdict struct {
	Action Action
	Reason Reason
	Packet Packet // as it goes on
}

// Counters are totals since the instance began.
type Counters struct {
	Overloads, Remaps, Reclaimed, RefusedFull, RefusedQuota uint64
	DroppedEarly                                            uint64
	Tries                                                   [maxTries + 1]uint64 // [0]: none found
	Live, Waiting                                           int
}

// NAT is the state of one instance.
type NAT struct {
	Config
	Counters
	Now       uint64
	Random    func() uint32
	Busy      func(inbound Tuple) bool // whether somebody else on the host receives this tuple
	Place     func(inbound Tuple) int  // slot of its note among the packets that INPUT let through
	Uplink    Addr                     // the configured address of the uplink
	Route     Addr                     // the source that the kernel chooses now; none: no route
	Lease     uint64                   // 0: no routed fast path
	RevokedAt uint64
	Networks  []*Network
	Devices   map[int]*Device

	flows  map[Tuple]*entry
	slots  []slot
	free   queue[int]      // slots given back
	fresh  int             // first slot never used
	hand   int             // next slot to sweep
	closed [2]queue[int]   // slots of closed sessions, oldest first
	waits  queue[*session] // begun outside, oldest first
	ports  [3][]port
	unused [3]pool // free ports
	binds  map[bind]int
	peers  map[peer]int
	passed map[int]Tuple // let through by INPUT and not answered yet

	external external
	memory   memory
}

// New returns an empty NAT.
func New(cfg Config) *NAT {
	n := &NAT{
		Config: cfg, Devices: map[int]*Device{}, flows: map[Tuple]*entry{}, slots: make([]slot, cfg.FlowsMax),
		binds: map[bind]int{}, peers: map[peer]int{}, passed: map[int]Tuple{},
		Busy: func(Tuple) bool { return false }, Place: func(Tuple) int { return 0 },
	}
	n.external, n.memory = external{n}, memory{n}
	for class := range n.ports {
		n.ports[class] = make([]port, cfg.Count)
		for off := range cfg.Count {
			n.unused[class].first(off)
			n.ports[class][off].free = true
		}
	}
	return n
}

func (n *NAT) network(a Addr) *Network {
	for _, net := range n.Networks {
		if net.Subnet.Contains(a) {
			return net
		}
	}
	return nil
}

// queue is a FIFO.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) push(x T) { q.items = append(q.items, x) }

func (q *queue[T]) pop() (x T, ok bool) {
	if x, ok = q.peek(); !ok {
		return x, false
	}
	q.head++
	if q.head > 1024 && 2*q.head > len(q.items) {
		q.items, q.head = append(q.items[:0], q.items[q.head:]...), 0
	}
	return x, true
}

func (q *queue[T]) peek() (x T, ok bool) {
	if q.len() == 0 {
		return x, false
	}
	return q.items[q.head], true
}
