package datapath

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf/link"
)

func TestVerifyFindsWhatIsMissing(t *testing.T) {
	h := newHarness(t, Config{FlowsMax: 64}, nil)
	detachLink := func(ifindex int, hook string) func(*testing.T) {
		return func(t *testing.T) {
			l, err := link.LoadPinnedLink(linkPath(h.dir, deviceLink(ifindex, hook)), nil)
			check(t, err)
			check(t, l.Detach())
			check(t, l.Close())
		}
	}
	port := func() error { return h.VerifyPort(h.c1) }
	uplink := func() error { return h.VerifyUplink(h.uplink) }
	mendPort := func() error { return h.AttachPort(h.c1) }
	mendUplink := func() error { return h.AttachUplink(h.uplink) }
	pub := h.publication(true)
	check(t, h.Publish(pub))
	host, to, inside := pubs4.entries(pub)
	published := func() error { return h.VerifyPublication(pub) }
	publish := func() error { return h.Publish(pub) }
	fdb := tcFbrFdbKey{Mac: [6]uint8(h.c1.MAC), Bridge: uint32(h.bridge)}
	for _, c := range []struct {
		name         string
		verify, mend func() error
		spoil        func(*testing.T)
	}{
		{"port: detached ingress", port, mendPort, detachLink(h.c1.Ifindex, "in")},
		{"port: detached egress", port, mendPort, detachLink(h.c1.Ifindex, "out")},
		{"port: link unpinned", port, mendPort, func(t *testing.T) {
			check(t, detach(linkPath(h.dir, deviceLink(h.c1.Ifindex, "in"))))
		}},
		{"port: address", port, mendPort, func(t *testing.T) { check(t, h.maps.FbrHosts.Delete(be32(h.c1.IP))) }},
		{"port: MAC", port, mendPort, func(t *testing.T) { check(t, h.maps.FbrFdb.Delete(&fdb)) }},
		{"port: device", port, mendPort, func(t *testing.T) { check(t, h.Datapath.devs.clearDevice(h.c1.Ifindex)) }},
		{"uplink: detached", uplink, mendUplink, detachLink(h.uplink.Ifindex, "out")},
		{"uplink: link unpinned", uplink, mendUplink, func(t *testing.T) {
			check(t, detach(linkPath(h.dir, deviceLink(h.uplink.Ifindex, "out"))))
		}},
		{"uplink: another address", uplink, mendUplink, func(t *testing.T) {
			check(t, h.AttachUplink(Uplink{Ifindex: h.uplink.Ifindex, Addr: server, MTU: h.uplink.MTU}))
		}},
		{"uplink: device", uplink, mendUplink, func(t *testing.T) { check(t, h.CloseUplink(h.uplink.Ifindex)) }},
		{"publication: port", published, publish, func(t *testing.T) { check(t, h.maps.FbrPub.Delete(&host[3])) }},
		{"publication: target", published, publish, func(t *testing.T) {
			other := to[3]
			other.Port = be16(7)
			check(t, h.maps.FbrPub.Put(&host[3], &other))
		}},
		{"publication: way back", published, publish, func(t *testing.T) { check(t, h.maps.FbrPubOf.Delete(&inside[3])) }},
		{"publication: not looked for", published, publish, func(t *testing.T) {
			check(t, h.Datapath.control.changeConf(func(c *tcFbrConf) error { c.Published = 0; return nil }))
		}},
		{"guard", h.VerifyGuard, h.AttachGuard, func(t *testing.T) { check(t, detach(linkPath(h.dir, guardLink))) }},
		{"input", h.VerifyGuard, h.AttachGuard, func(t *testing.T) { check(t, detach(linkPath(h.dir, inputLink))) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.ns.Enter(t) // subtests run on other threads
			check(t, c.verify())
			c.spoil(t)
			if err := c.verify(); !errors.Is(err, ErrDetached) {
				t.Errorf("verify = %v, want ErrDetached", err)
			}
			check(t, c.mend())
			check(t, c.verify())
		})
	}
}
