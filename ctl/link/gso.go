package link

import "fmt"

// DefaultGSO is the kernel's default for the largest IPv4 super-packet of a
// device, in bytes (GSO_LEGACY_MAX_SIZE).
const DefaultGSO = 65536

// SetGSO sets the largest IPv4 super-packet of a device, in bytes
// (gso_ipv4_max_size, Linux 6.3). A value above DefaultGSO is called BIG TCP.
func (c *Conn) SetGSO(index, bytes int) error {
	if err := c.h.LinkSetGSOIPv4MaxSize(ref(index), bytes); err != nil {
		return fmt.Errorf("setting gso_ipv4_max_size to %d: %w", bytes, sentinel(err))
	}
	return nil
}
