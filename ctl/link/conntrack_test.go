package link

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/testutil"
)

// TestEndLed: only connections that NAT leads to such a socket end.
func TestEndLed(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.RequireCommand(t, "conntrack")
	inNetns(t)
	conntrack := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("conntrack", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("conntrack %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	entry := func(proto, to, reply, port string) {
		t.Helper()
		args := []string{"-I", "-p", proto, "-s", "192.0.2.1", "-d", to, "--sport", "1000", "--dport", "80",
			"-r", reply, "-q", "192.0.2.1", "--reply-port-src", port, "--reply-port-dst", "1000", "-t", "100"}
		if proto == "sctp" {
			args = append(args, "--state", "ESTABLISHED", "--orig-vtag", "1", "--reply-vtag", "2")
		}
		conntrack(args...)
	}
	entry("sctp", "198.51.100.1", "172.30.0.2", "90")
	entry("sctp", "198.51.100.2", "172.30.0.2", "91")
	entry("sctp", "172.30.0.2", "172.30.0.2", "80")
	entry("udp", "198.51.100.1", "172.30.0.2", "90")
	if err := EndLed(unix.IPPROTO_SCTP, []netip.AddrPort{netip.MustParseAddrPort("172.30.0.2:90"), netip.MustParseAddrPort("172.30.0.2:80")}); err != nil {
		t.Fatal(err)
	}
	left := conntrack("-L")
	if strings.Count(left, "192.0.2.1 dst=") != 3 || strings.Contains(left, "sctp     132 99 ESTABLISHED src=192.0.2.1 dst=198.51.100.1") ||
		!strings.Contains(left, "sport=91") || !strings.Contains(left, "udp") {
		t.Errorf("left:\n%s", left)
	}
}
