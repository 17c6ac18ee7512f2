package ctl

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl/hostconf"
	"github.com/fastbr/fastbr/internal/testutil"
)

// TestPublishedPortsAreReserved for as long as they are published, beside what
// others have reserved, however much that is.
func TestPublishedPortsAreReserved(t *testing.T) {
	h := newHost(t)
	var others []string // beyond what the kernel reads or writes in one go
	for p := 1001; p < 8000; p += 2 {
		others = append(others, fmt.Sprint(p))
	}
	others = append(others, "40001")
	if err := hostconf.Write(hostconf.Reserved, strings.Join(others, ",")); err != nil {
		t.Fatal(err)
	}
	want := func(when, published string) {
		t.Helper()
		all, err := hostconf.ParsePorts(strings.Join(others, ",") + "," + published)
		if err != nil {
			t.Fatal(err)
		}
		if have, err := hostconf.ReservedNow(); err != nil || have != all {
			t.Errorf("%s: %s, %v, want %s", when, have, err, all)
		}
	}
	want("before", "")
	h.up(t)
	target := testutil.NewNetns(t)
	if err := attachOwned(h.ctx, h.ctl(t), target.Path()); err != nil { // 8080-8081
		t.Fatal(err)
	}
	want("attached", "10000-29999,8080-8081")
	r := PublishRequest{First: 40000, Last: 40002, Port: 80, Proto: "udp", Name: "c1"}
	if _, err := h.ctl(t).Publish(h.ctx, r); err != nil {
		t.Fatal(err)
	}
	want("published", "10000-29999,8080-8081,40000-40002")
	if err := hostconf.Write(hostconf.Reserved, strings.Join(others, ",")); err != nil {
		t.Fatal(err)
	}
	if err := h.ctl(t).Reconcile(h.ctx); err != nil {
		t.Fatal(err)
	}
	want("overwritten and reconciled", "10000-29999,8080-8081,40000-40002")
	if _, err := h.ctl(t).Unpublish(h.ctx, r); err != nil {
		t.Fatal(err)
	}
	want("published no more", "10000-29999,8080-8081")
	if _, err := h.ctl(t).Engine().Detach(h.ctx, false, func(Owner) bool { return true }); err != nil {
		t.Fatal(err)
	}
	want("detached", "10000-29999")
	h.downAll(t)
	want("down", "")
}
