package datapath

import (
	"errors"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// harness is a host with two networks, an uplink, two ports on the first network and
// one on the second. No packet travels: each program is run by itself. Programs and frames
// are those of one family; withIP6 makes the harness that has IPv6.
type harness struct {
	*Datapath
	addr               addresses
	ns                 *testutil.Netns // subtests run on other threads, so each run enters it
	bridge, bridge2    int
	c1, c2, other      Port
	uplink             Uplink
	foreign            int // a device that is none of these
	gateway, outsideHW net.HardwareAddr

	loaded *loaded      // nil: only this test uses the objects
	clock  *ebpf.Memory // nil: the released programs, on the kernel's clock
}

// addresses are who takes part, in one family.
type addresses struct {
	server, gateway, ext netip.Addr // gateway of c1 and c2, ext of the uplink
	c1, c2, other        netip.Addr
	router               netip.Addr // next hop at the uplink
}

var (
	of4 = addresses{server: server, gateway: gateway1, ext: extAddr, c1: c1Addr, c2: c2Addr, other: other, router: mustAddr("198.51.100.2")}
	of6 = addresses{server: outside6, gateway: gateway6, ext: extAddr6, c1: c1Addr6, c2: c2Addr6, other: other6, router: router6}
)

var (
	server   = netip.MustParseAddr("192.0.2.11")
	gateway1 = netip.MustParseAddr("172.30.0.1")
	extAddr  = netip.MustParseAddr("198.51.100.1")
	c1Addr   = netip.MustParseAddr("172.30.0.2")
	c2Addr   = netip.MustParseAddr("172.30.0.3")
	other    = netip.MustParseAddr("172.31.0.2")
)

// Verdicts of tcx programs.
const (
	next     = -1
	shot     = 2
	redirect = 7
)

// NF_ACCEPT
const accept = 1

// Verdicts of XDP programs.
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

func mustMAC(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// failVerbosely fails the test with all of a verifier's output.
func failVerbosely(t testing.TB, err error) {
	t.Helper()
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		t.Fatalf("%v\n%+v", err, ve)
	}
	check(t, err)
}

// addVeth makes a veth pair and returns the ifindex of the first end.
func addVeth(t testing.TB, name string) int {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, HardwareAddr: mustMAC("02:00:00:00:00:01")}, PeerName: name + "p"}
	check(t, netlink.LinkAdd(v))
	for _, n := range []string{name, name + "p"} {
		l, err := netlink.LinkByName(n)
		check(t, err)
		check(t, netlink.LinkSetUp(l))
	}
	l, err := netlink.LinkByName(name)
	check(t, err)
	return l.Attrs().Index
}

// addAddress gives a device an address, at once.
func addAddress(t testing.TB, ifindex int, a netip.Addr, bits int) {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	check(t, err)
	addr, err := netlink.ParseAddr(netip.PrefixFrom(a, bits).String())
	check(t, err)
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	check(t, netlink.AddrAdd(l, addr))
	if !a.Is6() {
		return
	}
	// A worker of the kernel's makes the address the host's, a moment later.
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Millisecond) {
		if routes, err := netlink.RouteGet(a.AsSlice()); err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not the host's", a)
		}
	}
}

func addBridge(t testing.TB, name string) int {
	t.Helper()
	check(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
	l, err := netlink.LinkByName(name)
	check(t, err)
	return l.Attrs().Index
}

// newHarness has a clock that stands still unless the test moves it. However slow the
// machine is, no lease, session or timeout ends.
func newHarness(t testing.TB, cfg Config, tune func(*tcVariableSpecs) error) *harness {
	t.Helper()
	testutil.RequireRoot(t)
	var l *loaded
	load := loading(loadInjected, tune)
	if cfg.FlowsMax == usual.FlowsMax && tune == nil {
		l = borrow(t)
		load = l.again
	}
	h := newHarnessFrom(t, cfg, load, l)
	h.inject(t)
	h.Datapath.families.load6 = h.load6(tune)
	return h
}

// newReal has the released programs, on the kernel's clock.
func newReal(t testing.TB, cfg Config, tune func(*tcVariableSpecs) error) *harness {
	t.Helper()
	testutil.RequireRoot(t)
	return newHarnessFrom(t, cfg, loading(loadTc, tune), nil)
}

// newHarnessFrom has the objects of a loader. borrowed is nil if they are not shared.
func newHarnessFrom(t testing.TB, cfg Config, load loader, borrowed *loaded) *harness {
	t.Helper()
	h := &harness{
		addr:      of4,
		loaded:    borrowed,
		ns:        testutil.NewNetns(t),
		gateway:   mustMAC("02:42:ac:1e:00:01"),
		outsideHW: mustMAC("02:00:00:00:00:99"),
	}
	h.ns.Enter(t)
	// Otherwise the kernel's own neighbour discovery is counted, too.
	for _, which := range []string{"all", "default"} {
		check(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0))
	}
	// In a new namespace the switches are 1 where br_netfilter is built in.
	for _, tables := range []string{"iptables", "ip6tables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+tables, []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	// bpf_fib_lookup finds no route where the kernel would not forward.
	check(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	meta := metaOf(t, cfg)
	if borrowed != nil {
		meta.Mark = borrowed.mark
	}
	h.Datapath = newDatapath(t, meta, load)
	h.bridge, h.bridge2 = addBridge(t, "br1"), addBridge(t, "br2")
	up := addVeth(t, "up0")
	addAddress(t, up, extAddr, 24)
	check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up, Gw: of4.router.AsSlice()}))
	h.foreign = addVeth(t, "nic2")

	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Gateway: netip.MustParseAddr("172.30.0.1"), Bridge: h.bridge, Masquerade: true}))
	check(t, h.SetNetwork(Network{Subnet: netip.MustParsePrefix("172.31.0.0/16"), Gateway: netip.MustParseAddr("172.31.0.1"), Bridge: h.bridge2, Masquerade: true}))
	h.uplink = Uplink{Ifindex: up, Addr: extAddr, MTU: 1500}
	check(t, h.AttachUplink(h.uplink))
	port := func(name string, bridge int, ip netip.Addr, mac string) Port {
		p := Port{Ifindex: addVeth(t, name), Bridge: bridge, BridgeMAC: h.gateway, MAC: mustMAC(mac), IP: ip, MTU: 1500}
		check(t, h.AttachPort(p))
		return p
	}
	h.c1 = port("p1", h.bridge, c1Addr, "02:42:ac:1e:00:02")
	h.c2 = port("p2", h.bridge, c2Addr, "02:42:ac:1e:00:03")
	h.other = port("p3", h.bridge2, other, "02:42:ac:1f:00:02")
	return h
}

// skb is the context of a run: struct __sk_buff up to gso_size.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VLANPresent, VLANTCI, VLANProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	HWTstamp                                                                    uint64
}

type result struct {
	verdict int32
	frame   []byte
	mark    uint32
}

// run runs a program at device ifindex, on a frame that came in by iif (0: made by the
// host).
func (h *harness) run(t *testing.T, p *ebpf.Program, frame []byte, ifindex, iif int, change ...func(*skb)) result {
	t.Helper()
	in := skb{Ifindex: uint32(ifindex), IngressIfindex: uint32(iif)}
	for _, c := range change {
		c(&in)
	}
	var out skb
	data := make([]byte, len(frame)+256)
	opts := ebpf.RunOptions{Data: frame, DataOut: data, Context: in, ContextOut: &out}
	var ret uint32
	var err error
	h.ns.Do(t, func() { ret, err = p.Run(&opts) })
	if err != nil {
		t.Fatalf("running %s: %v", p, err)
	}
	return result{int32(ret), opts.DataOut, out.Mark}
}

// object is what is loaded of the harness's family.
func (h *harness) object() *object {
	if h.addr.server.Is6() {
		return h.six
	}
	return h.four
}

// prog is a program of the harness's family.
func (h *harness) prog(name string) *ebpf.Program { return h.object().progs[name] }

func (h *harness) portIn(t *testing.T, frame []byte, change ...func(*skb)) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrPortIn), frame, h.c1.Ifindex, h.c1.Ifindex, change...)
}

// uplinkOut runs fbr_uplink_out on a frame that the kernel has routed.
func (h *harness) uplinkOut(t *testing.T, frame []byte, iif int, change ...func(*skb)) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrUplinkOut), frame, h.uplink.Ifindex, iif, change...)
}

func (h *harness) uplinkIn(t *testing.T, frame []byte, change ...func(*skb)) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrUplinkIn), frame, h.uplink.Ifindex, h.uplink.Ifindex, change...)
}

func (h *harness) portOut(t *testing.T, frame []byte, iif int) result {
	t.Helper()
	return h.run(t, h.prog(tcProgFbrPortOut), frame, h.c1.Ifindex, iif)
}

// input runs fbr_input on a packet that every rule of INPUT lets through.
func (h *harness) input(t *testing.T, f testutil.Frame) {
	t.Helper()
	var ret uint32
	var err error
	p := h.prog(tcProgFbrInput)
	h.ns.Do(t, func() { ret, err = p.Run(&ebpf.RunOptions{Data: f.IP(t)}) })
	if err != nil || ret != accept {
		t.Fatalf("running %s: verdict %d, %v", p, ret, err)
	}
}

// xdpContext is struct xdp_md, include/uapi/linux/bpf.h.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RXQueueIndex, EgressIfindex uint32
}

// xdpIn runs fbr_uplink_xdp on a frame that arrives at the uplink. XDP must be attached
// there.
func (h *harness) xdpIn(t *testing.T, frame []byte) result {
	t.Helper()
	return h.runXDP(t, h.prog(tcProgFbrUplinkXdp), frame, h.uplink.Ifindex)
}

func (h *harness) runXDP(t *testing.T, p *ebpf.Program, frame []byte, ifindex int) result {
	t.Helper()
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)}}
	var ret uint32
	var err error
	h.ns.Do(t, func() { ret, err = p.Run(&opts) })
	if err != nil {
		t.Fatalf("running %s: %v", p, err)
	}
	return result{verdict: int32(ret), frame: opts.DataOut}
}

// of are the counters of a device.
func (h *harness) of(t *testing.T, ifindex int) Counters {
	t.Helper()
	all, err := h.Stats()
	check(t, err)
	return all[ifindex]
}

// wantDrop asserts that exactly one more drop of this reason was counted on the device.
func (h *harness) wantDrop(t *testing.T, ifindex int, reason Reason, do func() result) {
	t.Helper()
	h.wantCounted(t, ifindex, reason, func() {
		if got := do(); got.verdict != shot {
			t.Errorf("verdict %d, want drop", got.verdict)
		}
	})
}

// wantRefused asserts that f, as the kernel routes it, makes no session, and that its
// container is told so.
func (h *harness) wantRefused(t *testing.T, p Port, reason Reason, f testutil.Frame) {
	t.Helper()
	h.wantCounted(t, p.Ifindex, reason, func() {
		sent := h.routed(f)
		got := h.uplinkOut(t, sent.Bytes(t), h.bridge)
		want := testutil.Frame{SrcMAC: h.gateway, DstMAC: p.MAC, Src: gateway1, Dst: p.IP, TOS: 0xc0,
			ICMP: &testutil.ICMPError{Type: 3, Code: 13, Inner: sent.IP(t)[:28]}}.Bytes(t)
		if got.verdict != redirect || string(got.frame) != string(want) {
			t.Errorf("verdict %d\n got %x\nwant %x", got.verdict, got.frame, want)
		}
	})
}

func (h *harness) wantCounted(t *testing.T, ifindex int, reason Reason, do func()) {
	t.Helper()
	before := h.of(t, ifindex)
	do()
	after := h.of(t, ifindex)
	for r, n := range after.Drops {
		want := before.Drops[r]
		if r == reason {
			want++
		}
		if n != want {
			t.Errorf("drops[%s] = %d, want %d", r, n, want)
		}
	}
	if after.Drops[reason] == before.Drops[reason] {
		t.Errorf("no drop counted as %s: %v", reason, after.Drops)
	}
}

// fromC1 is a valid routed frame of c1 to the server.
func (h *harness) fromC1() testutil.Frame {
	return testutil.Frame{
		SrcMAC: h.c1.MAC, DstMAC: h.gateway, Src: h.addr.c1, Dst: h.addr.server,
		TCP: &testutil.TCP{SrcPort: 40000, DstPort: 80, ACK: true}, Payload: []byte("hello, outside"),
	}
}

// routed is f as the kernel hands it to the uplink, with other MAC addresses and a TTL
// of one less.
func (h *harness) routed(f testutil.Frame) testutil.Frame {
	f.SrcMAC, f.DstMAC = mustMAC("02:00:00:00:00:01"), h.outsideHW
	if f.TTL == 0 {
		f.TTL = 64
	}
	f.TTL--
	return f
}

// reply turns a translated frame into the server's answer, as it arrives at the uplink.
func (h *harness) reply(f testutil.Frame, eport uint16) testutil.Frame {
	r := f.With()
	r.SrcMAC, r.DstMAC = h.outsideHW, mustMAC("02:00:00:00:00:01")
	r.Src, r.Dst, r.TTL = f.Dst, h.addr.ext, 0
	switch {
	case r.TCP != nil:
		r.TCP.SrcPort, r.TCP.DstPort = f.TCP.DstPort, eport
	case r.UDP != nil:
		r.UDP.SrcPort, r.UDP.DstPort = f.UDP.DstPort, eport
	case r.Echo != nil:
		r.Echo.Reply, r.Echo.ID = true, eport
	}
	return r
}

// flow returns the only session.
func (h *harness) flow(t *testing.T) Flow {
	t.Helper()
	fs, err := h.Flows()
	check(t, err)
	if len(fs) != 1 {
		t.Fatalf("%d flows, want 1: %+v", len(fs), fs)
	}
	return fs[0]
}

// open sends f out by the kernel's path and a reply in. Then both directions hold a
// lease that is younger than any revocation. It returns the external port.
func (h *harness) open(t *testing.T, f testutil.Frame) uint16 {
	t.Helper()
	h.age(t, 0)
	if got := h.uplinkOut(t, h.routed(f).Bytes(t), h.bridge); got.verdict != next {
		t.Fatalf("first packet: verdict %d", got.verdict)
	}
	eport := h.eport(t, f)
	in := h.uplinkIn(t, h.reply(f, eport).Bytes(t))
	if in.verdict != next {
		t.Fatalf("first reply: verdict %d", in.verdict)
	}
	delivered := append([]byte(nil), in.frame...)
	copy(delivered, append(append([]byte(nil), h.c1.MAC...), h.gateway...))
	if out := h.portOut(t, delivered, h.uplink.Ifindex); out.verdict != next {
		t.Fatalf("delivery: verdict %d", out.verdict)
	}
	if h.clock == nil {
		h.keep(t)
	}
	return eport
}

// keep makes sessions and leases on the kernel's clock outlast a slow machine. Sessions
// live an hour, leases as long as they can.
func (h *harness) keep(t *testing.T) {
	t.Helper()
	m := h.object().maps[tcMapFbrFlow]
	if h.addr.server.Is6() {
		keepIn(t, m, func(v *tc6FbrFlow) (uint8, *uint64, *uint16) { return v.Key.Proto, &v.Seen, &v.LeaseLen }, h.meta.Hz)
		return
	}
	keepIn(t, m, func(v *tcFbrFlow) (uint8, *uint64, *uint16) { return v.Key.Proto, &v.Seen, &v.LeaseLen }, h.meta.Hz)
}

func keepIn[V any](t testing.TB, m *ebpf.Map, fields func(*V) (proto uint8, seen *uint64, lease *uint16), hz uint32) {
	t.Helper()
	for i, v := range all[uint32, V](t, m, m.MaxEntries()) {
		proto, seen, lease := fields(&v)
		if proto == 0 || *lease == math.MaxUint16 {
			continue
		}
		*seen, *lease = *seen+3600*uint64(hz), math.MaxUint16
		check(t, m.Put(i, &v))
	}
}

func (h *harness) eport(t *testing.T, f testutil.Frame) uint16 {
	t.Helper()
	live := h.sessions(t)
	for _, slot := range slices.Sorted(maps.Keys(live)) { // of several, the first
		x := live[slot]
		if x.Fwd.Src == f.Src && x.Fwd.SPort == sourcePort(f) && protoOf(f) == protoName(uint8(x.Fwd.Proto)) {
			return x.EPort
		}
	}
	t.Fatalf("no flow of %s:%d in %+v", f.Src, sourcePort(f), live)
	return 0
}

func protoOf(f testutil.Frame) string {
	switch {
	case f.TCP != nil:
		return "tcp"
	case f.UDP != nil:
		return "udp"
	default:
		return "icmp"
	}
}

func sourcePort(f testutil.Frame) uint16 {
	switch {
	case f.TCP != nil:
		return f.TCP.SrcPort
	case f.UDP != nil:
		return f.UDP.SrcPort
	default:
		return f.Echo.ID
	}
}

func metaOf(t testing.TB, cfg Config) tcFbrMeta {
	t.Helper()
	meta, err := newMeta(cfg)
	check(t, err)
	return meta
}

// newDatapath creates a datapath in the current namespace.
func newDatapath(t testing.TB, meta tcFbrMeta, load loader) *Datapath {
	t.Helper()
	d, err := create(filepath.Join(testutil.BPFFS(t), "dp"), meta, load)
	failVerbosely(t, err)
	t.Cleanup(func() {
		if err := errors.Join(d.Close(), Remove(d.dir)); err != nil {
			t.Error(err)
		}
	})
	return d
}
