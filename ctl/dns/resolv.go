package dns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// HostResolvers returns the resolvers of a resolv.conf, with the port. It
// returns none, and no error, if the file does not exist.
func HostResolvers(path string) (out []netip.AddrPort, err error) {
	c, err := dns.ClientConfigFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	for _, server := range c.Servers {
		if addr, err := netip.ParseAddr(server); err == nil {
			out = append(out, netip.AddrPortFrom(addr, Port))
		}
	}
	return out, nil
}

// ContainerConfig returns the resolv.conf of a container. Its gateway comes
// first. Then come those of the host's resolvers that the container can reach,
// for when nobody answers at the gateway; an internal network reaches none.
// search and options are the host's.
func ContainerConfig(hostPath string, gateway netip.Addr, internal bool) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "nameserver %s\n", gateway)
	c, err := dns.ClientConfigFromFile(hostPath)
	if errors.Is(err, fs.ErrNotExist) {
		return b.String(), nil
	} else if err != nil {
		return "", fmt.Errorf("reading %s: %w", hostPath, err)
	}
	for _, server := range c.Servers {
		if addr, err := netip.ParseAddr(server); err == nil && !internal && !addr.IsLoopback() && addr.Is4() {
			fmt.Fprintf(&b, "nameserver %s\n", addr)
		}
	}
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	if c.Ndots > 1 {
		fmt.Fprintf(&b, "options ndots:%d\n", c.Ndots)
	}
	return b.String(), nil
}
