package e2e

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// TestE2EPublishedReopened: a client connects to a published port again from the port of a
// connection that is over, reset or closed. The kernel translates every such connection, and
// no packet of one reaches the host's own sockets.
func TestE2EPublishedReopened(t *testing.T) {
	t.Parallel()
	fastbrModes(t, func(t *testing.T, m harness.Mode) {
		t.Parallel()
		h := upE2E(t, m, lab.Options{Containers: 1})
		web := h.Containers[0]
		h.ServeTCP(t, web, on(web.Addr, 80))
		// The server closes first, so that the client's port is free at once.
		if _, err := web.ServeTCP(on(web.Addr, 81), func(c *net.TCPConn) { _, _ = io.WriteString(c, "bye") }); err != nil {
			t.Fatal(err)
		}
		h.Must(t, "publish", "add", "8080-8081:80-81", "c1")
		h.nft(t, onlyPublished)
		for _, end := range []struct {
			port uint16
			use  func(c *net.TCPConn) error
		}{
			{8080, func(c *net.TCPConn) error {
				return errors.Join(lab.Echo(h.Ctx, c, "and reset"), c.SetLinger(0))
			}},
			{8081, func(c *net.TCPConn) error {
				_, err := io.ReadAll(c)
				return err
			}},
		} {
			for k := range 3 {
				c, err := h.Outside.DialTCP(h.Ctx, on(h.Outside.Addr, 45000), on(h.Host.Addr, end.port))
				if err != nil {
					t.Fatalf("connection %d to port %d: %v", k, end.port, err)
				}
				if err := errors.Join(end.use(c), c.Close()); err != nil {
					t.Errorf("connection %d to port %d: %v", k, end.port, err)
				}
			}
		}
		if n := h.drops(t, "unsupported"); n != 0 {
			t.Errorf("%d packets were not translated", n)
		}
	})
}
