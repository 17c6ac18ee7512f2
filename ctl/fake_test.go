package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/datapath"
)

// fakeFile is a datapath that is only a file, so that it survives the process
// as pins do. It insists on the order that the real one needs.
type fakeFile struct {
	dir        string
	Conf       datapath.Config
	Networks   map[int]datapath.Network
	Ports      map[int]datapath.Port
	Uplinks    map[int]datapath.Uplink
	Published  map[uint16]datapath.Publication
	Published6 map[uint16]datapath.Publication // to IPv6 addresses
	Local      []netip.Addr
	Fragments  int // device
	LeaseNow   time.Duration
	Opened     [2]bool // by IPv4, by IPv6
	XDP        map[int]bool
	driver     error // what the uplinks' driver says to XDP
	// TakenSlots are slots that AttachPort, AttachUplink and AttachFragments refuse.
	TakenSlots map[int]bool
}

// fakeNetns is where the namespace for fragments is mounted.
const fakeNetns = "netns"

// fakePlanes makes fakeFiles.
type fakePlanes struct {
	missing    string // as FASTBR_PROBE_MISSING
	driver     error  // what the uplinks' driver says to XDP
	takenSlots map[int]bool
	openErr    error
	createErr  error
}

func (fakePlanes) prepare(string) error { return nil }

func (p fakePlanes) create(dir string, cfg datapath.Config) (plane, error) {
	if p.createErr != nil {
		return nil, p.createErr
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", datapath.ErrExists, err)
	}
	if cfg.FlowsMax == 0 {
		cfg.FlowsMax = 4096
	}
	f := &fakeFile{dir: dir, Conf: cfg, Networks: map[int]datapath.Network{}, Ports: map[int]datapath.Port{},
		Uplinks: map[int]datapath.Uplink{}, Published: map[uint16]datapath.Publication{}, Published6: map[uint16]datapath.Publication{}, XDP: map[int]bool{}, TakenSlots: p.takenSlots, driver: p.driver}
	return f, f.save()
}

func (p fakePlanes) open(dir string) (plane, error) {
	if _, err := os.Stat(filepath.Join(dir, "upgraded")); p.openErr != nil && err != nil {
		return nil, p.openErr
	}
	b, err := os.ReadFile(filepath.Join(dir, "fake.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, datapath.ErrNotLoaded
	}
	f := &fakeFile{dir: dir, driver: p.driver}
	if err == nil {
		err = json.Unmarshal(b, f)
	}
	return f, err
}

func (p fakePlanes) upgrade(dir string, passed func(string) error, settle func(plane) error) (bool, error) {
	if p.openErr == nil {
		return false, nil
	}
	if err := passed("upgrade-load"); err != nil {
		return false, err
	}
	err := os.WriteFile(filepath.Join(dir, "upgraded"), nil, 0o600)
	dp, openErr := p.open(dir)
	if err = errors.Join(err, openErr); err == nil {
		err = settle(dp)
	}
	return true, err
}

func (fakePlanes) remove(dir string) error {
	err := errors.Join(removeFakeNetns(dir), os.RemoveAll(dir))
	_ = os.Remove(filepath.Dir(dir))
	return err
}

func (p fakePlanes) probe() []datapath.Feature {
	return withhold([]datapath.Feature{{Name: "tcx", Required: true, Minimum: "6.6"}, {Name: "xdp", Minimum: "5.9"}}, p.missing)
}

func (f *fakeFile) save() error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(f.dir, "fake.json"), b, 0o600)
}

func (f *fakeFile) Close() error                     { return nil }
func (f *fakeFile) Config() (datapath.Config, error) { return f.Conf, nil }

func (f *fakeFile) SetNetwork(n datapath.Network) error {
	f.Networks[n.Bridge] = n
	return f.save()
}

func (f *fakeFile) DeleteNetwork(bridge int) error {
	delete(f.Networks, bridge)
	return f.save()
}

func (f *fakeFile) AttachPort(p datapath.Port) error {
	if _, ok := f.Networks[p.Bridge]; !ok {
		return fmt.Errorf("port %d before its network", p.Ifindex)
	}
	if f.TakenSlots[p.Ifindex%datapath.MaxDevices] {
		return fmt.Errorf("device %d: %w", p.Ifindex, datapath.ErrSlotTaken)
	}
	f.Ports[p.Ifindex] = p
	return f.save()
}

func (f *fakeFile) DetachPort(i int) error {
	delete(f.Ports, i)
	return f.save()
}

func (f *fakeFile) PortAt(ip netip.Addr) (int, error) {
	for i, p := range f.Ports {
		if p.IP == ip {
			return i, nil
		}
	}
	return 0, nil
}

// published are the publications of the family of p.
func (f *fakeFile) published(p datapath.Publication) map[uint16]datapath.Publication {
	if p.Container.Is6() {
		return f.Published6
	}
	return f.Published
}

func (f *fakeFile) Publish(ps ...datapath.Publication) error {
	for _, p := range ps {
		if _, ok := f.Ports[p.Ifindex]; !ok {
			return fmt.Errorf("publishing %d-%d before the port", p.First, p.Last)
		}
		f.published(p)[p.First] = p
	}
	return f.save()
}

func (f *fakeFile) Unpublish(ps ...datapath.Publication) error {
	for _, p := range ps {
		delete(f.published(p), p.First)
	}
	return f.save()
}

func (f *fakeFile) VerifyPublication(p datapath.Publication) error {
	if f.published(p)[p.First] != p {
		return datapath.ErrDetached
	}
	return nil
}

func (f *fakeFile) AttachHost(string) error { return nil }

func (f *fakeFile) SetLocal(addrs []netip.Addr) error {
	f.Local = addrs
	return f.save()
}

func (f *fakeFile) AttachUplink(u datapath.Uplink) error {
	if f.TakenSlots[u.Ifindex%datapath.MaxDevices] {
		return datapath.ErrSlotTaken
	}
	f.Uplinks[u.Ifindex] = u
	return f.save()
}

func (f *fakeFile) AttachXDP(i int) error {
	if f.driver != nil {
		return f.driver
	}
	f.XDP[i] = true
	return f.save()
}

func (f *fakeFile) DetachXDP(i int) error {
	delete(f.XDP, i)
	return f.save()
}

func (f *fakeFile) VerifyXDP(i int) error {
	if !f.XDP[i] {
		return datapath.ErrDetached
	}
	return nil
}

func (f *fakeFile) CloseUplink(i int) error { return f.DetachUplink(i) }

func (f *fakeFile) DetachUplink(i int) error {
	delete(f.Uplinks, i)
	delete(f.XDP, i)
	return f.save()
}

func (f *fakeFile) Devices() (out []int, err error) {
	for i := range f.Ports {
		out = append(out, i)
	}
	for i := range f.Uplinks {
		out = append(out, i)
	}
	for slot := range f.TakenSlots {
		out = append(out, slot)
	}
	return out, nil
}

// AttachDefrag keeps the namespace alive by a mount, as the pinned link does.
func (f *fakeFile) AttachDefrag() error {
	if err := f.DetachFragments(0); err != nil {
		return err
	}
	path := filepath.Join(f.dir, fakeNetns)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
}

func (f *fakeFile) AttachFragments(i int, _ net.HardwareAddr) error {
	if f.TakenSlots[i%datapath.MaxDevices] {
		return fmt.Errorf("device %d: %w", i, datapath.ErrSlotTaken)
	}
	f.Fragments = i
	return f.save()
}

func (f *fakeFile) DetachFragments(int) error {
	f.Fragments = 0
	return errors.Join(removeFakeNetns(f.dir), f.save())
}

func (f *fakeFile) VerifyFragments(i int) error {
	if f.Fragments != i {
		return datapath.ErrDetached
	}
	return nil
}

func removeFakeNetns(dir string) error {
	path := filepath.Join(dir, fakeNetns)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return os.RemoveAll(path)
}

func (f *fakeFile) AttachGuard() error { return nil }
func (f *fakeFile) VerifyGuard() error { return nil }

func (f *fakeFile) VerifyPort(p datapath.Port) error {
	if q, ok := f.Ports[p.Ifindex]; !ok || q.IP != p.IP || q.MAC.String() != p.MAC.String() {
		return datapath.ErrDetached
	}
	return nil
}

func (f *fakeFile) HasUplink(u datapath.Uplink) error { return f.VerifyUplink(u) }

func (f *fakeFile) VerifyUplink(u datapath.Uplink) error {
	have := f.Uplinks[u.Ifindex]
	if have.Closed = u.Closed; have != u {
		return datapath.ErrDetached
	}
	return nil
}

func (f *fakeFile) Unpinned(ports []int) (out []int, _ error) {
	for _, i := range ports {
		_, port := f.Ports[i]
		_, uplink := f.Uplinks[i]
		if !port && !uplink {
			out = append(out, i)
		}
	}
	return out, nil
}

func (f *fakeFile) SetLease(l time.Duration) error {
	f.LeaseNow = l
	return f.save()
}

func (f *fakeFile) Lease() (time.Duration, error) { return f.LeaseNow, nil }

func (f *fakeFile) SetOpened(ipv4, ipv6 bool) error {
	f.Opened = [2]bool{ipv4, ipv6}
	return f.save()
}

func (f *fakeFile) SetNATRange(first, last uint16) error {
	f.Conf.NATFirst, f.Conf.NATLast = first, last
	return f.save()
}

func (f *fakeFile) Revoke() error { return nil }

func (f *fakeFile) Stats(...int) (map[int]datapath.Counters, error) {
	out := map[int]datapath.Counters{}
	for i := range f.Ports {
		out[i] = datapath.Counters{RX: datapath.PathCounters{FastPackets: 2, FastBytes: 120, SlowPackets: 1, SlowBytes: 60},
			Drops: map[datapath.Reason]uint64{"spoof_ip": 4}}
	}
	return out, nil
}

func (f *fakeFile) NATStats() (datapath.NATStats, error) {
	return datapath.NATStats{FlowsOf: map[string]uint32{"ipv4": 0}, FlowsMax: f.Conf.FlowsMax}, nil
}
func (f *fakeFile) Flows() ([]datapath.Flow, error) { return nil, nil }
func (f *fakeFile) FlushFlows() (int, error)        { return 0, nil }
