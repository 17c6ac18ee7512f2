package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// serveFTP answers the commands of FTP that matter to a helper: PASV names the port data.
func (h *e2e) serveFTP(t *testing.T, n *lab.Namespace, at netip.AddrPort, data uint16) {
	t.Helper()
	s, err := n.ServeTCP(at, func(c *net.TCPConn) {
		fmt.Fprint(c, "220 ready\r\n")
		for in := bufio.NewScanner(c); in.Scan(); {
			reply := "200 done"
			if in.Text() == "PASV" {
				reply = fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d).", strings.ReplaceAll(at.Addr().String(), ".", ","), data>>8, data&0xff)
			}
			fmt.Fprint(c, reply+"\r\n")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
}

// TestE2EPassiveFTP: a firewall lets out connections to port 21, and what conntrack's FTP
// helper has read there. The control connection had time for a lease.
func TestE2EPassiveFTP(t *testing.T) {
	t.Parallel()
	const data = 40021
	eachMode(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		at := on(h.Outside.Addr, 21)
		h.serveFTP(t, h.Outside, at, data)
		h.ServeTCP(t, h.Outside, on(h.Outside.Addr, data))
		err := h.Host.NFT(h.Ctx, `table ip ftp {
			ct helper control { type "ftp" protocol tcp; }
			chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "control"; }
			chain forwarded { type filter hook forward priority 0; ct state established,related accept; tcp dport 21 accept; drop; }
		}`)
		if err != nil {
			t.Fatal(err)
		}
		c := h.Containers[0]
		conn, err := c.DialTCP(h.Ctx, netip.AddrPort{}, at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		replies := bufio.NewReader(conn)
		reply := func() string {
			line, err := replies.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			return line
		}
		reply()
		ask := func(command string) string {
			fmt.Fprint(conn, command+"\r\n")
			return reply()
		}
		for range 10 {
			ask("NOOP")
		}
		if got := ask("PASV"); !strings.HasPrefix(got, "227 ") {
			t.Fatalf("the server says %q", got)
		}
		if err := c.EchoTCP(h.Ctx, netip.AddrPort{}, on(h.Outside.Addr, data), "data"); err != nil {
			t.Errorf("the data connection: %v", err)
		}
	})
}
