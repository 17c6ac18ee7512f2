package link

import (
	"errors"
	"net"
	"os/exec"
	"slices"
	"testing"
)

// TestVethTakesXDPWithGRO: an end of a pair has XDPTakes as long as its peer
// has GRO. The peer is found by what the end knows of it.
func TestVethTakesXDPWithGRO(t *testing.T) {
	c, peer := inNetns(t), openPeer(t)
	port, _, err := c.CreateVeth(Veth{Name: "v0", PeerName: "eth0", PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, PeerNS: peer, MTU: 1500})
	if err != nil {
		t.Fatal(err)
	}
	inside, err := OpenIn(peer)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	d, err := inside.ByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.SetUp(port, true), inside.SetUp(d.Index, true)); err != nil {
		t.Fatal(err)
	}
	takes := func() bool {
		t.Helper()
		all, err := XDP(port, 4711)
		if err != nil {
			t.Fatal(err)
		}
		if all[port]&XDPNative == 0 {
			t.Errorf("a veth has no native XDP: %v", all)
		}
		return all[port]&XDPTakes != 0
	}
	if takes() {
		t.Error("it takes frames before")
	}
	for _, on := range []bool{true, true, false, false} {
		var is map[string]bool
		err := peer.Do(func() (err error) {
			if err = SetOffload("eth0", GRO, on); err == nil {
				is, err = Offloads("eth0")
			}
			return err
		})
		if err != nil || is[GRO] != on || takes() != on {
			t.Errorf("GRO set to %v is %v, takes frames %v: %v", on, is[GRO], takes(), err)
		}
	}
	if err := SetOffload("v0", "nonsense", true); err == nil {
		t.Error("a feature that there is not was set")
	}
	if _, err := Offloads("nosuch0"); err == nil {
		t.Error("a device that there is not has features")
	}

	entries, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	// Only a process is in that namespace: it has no name.
	process := exec.Command("sleep", "600")
	if err := peer.Do(process.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = process.Process.Kill(), process.Wait() }()
	at := slices.IndexFunc(entries, func(e Entry) bool { return e.Index == port })
	found, err := FindNetns(peer.ID())
	if err != nil || at < 0 {
		t.Fatalf("%v, %v", entries, err)
	}
	defer found.Close()
	if found.ID() != peer.ID() || entries[at].Lower != d.Index {
		t.Errorf("the peer is %d in %+v, want %d in %+v", entries[at].Lower, found.ID(), d.Index, peer.ID())
	}
	if _, err := FindNetns(NetnsID{Dev: peer.ID().Dev, Ino: 1}); !errors.Is(err, ErrGone) {
		t.Errorf("namespace 1: %v, want ErrGone", err)
	}
}
