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

// ftpPlace is how FTP writes an address and a port.
func ftpPlace(at netip.AddrPort) string {
	return fmt.Sprintf("%s,%d,%d", strings.ReplaceAll(at.Addr().String(), ".", ","), at.Port()>>8, at.Port()&0xff)
}

// serveFTP answers the commands of FTP that matter to a helper: PASV names the port data,
// and at PORT it connects there and sends what it was told.
func (h *e2e) serveFTP(t *testing.T, n *lab.Namespace, at netip.AddrPort, data uint16) {
	t.Helper()
	s, err := n.ServeTCP(at, func(c *net.TCPConn) {
		fmt.Fprint(c, "220 ready\r\n")
		for in := bufio.NewScanner(c); in.Scan(); {
			reply := "200 done"
			place, active := strings.CutPrefix(in.Text(), "PORT ")
			switch {
			case in.Text() == "PASV":
				reply = fmt.Sprintf("227 Entering Passive Mode (%s).", ftpPlace(on(at.Addr(), data)))
			case active:
				reply = h.connectBack(n, at.Addr(), place)
			}
			fmt.Fprint(c, reply+"\r\n")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
}

// connectBack is the data connection of a server to the place that a client has named.
func (h *e2e) connectBack(server *lab.Namespace, from netip.Addr, place string) (reply string) {
	var b [6]byte
	if _, err := fmt.Sscanf(place, "%d,%d,%d,%d,%d,%d", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]); err != nil {
		return "501 " + err.Error()
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5]))
	if err := server.EchoTCP(h.Ctx, on(from, 20), to, place); err != nil {
		return "425 " + err.Error()
	}
	return "226 done"
}

// TestE2EFTP: a firewall lets out connections to port 21, and both ways what conntrack's
// FTP helper has read there. The control connection had time for a lease. What a container
// says of its own address is what the server sees.
func TestE2EFTP(t *testing.T) {
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
		s := h.ServeTCP(t, c, on(c.Addr, data))
		if got := ask("PORT " + ftpPlace(s.Addr)); !strings.HasPrefix(got, "226 ") {
			t.Errorf("active: the server says %q", got)
		}
		assertPeers(t, s, h.Outside.Addr)
	})
}
