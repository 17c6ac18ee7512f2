package link

import "fmt"

// DefaultGSO is the most that the kernel puts into a super-packet of IPv4 on a
// device that nobody has set otherwise, in bytes (GSO_LEGACY_MAX_SIZE).
const DefaultGSO = 65536

// SetGSO sets the most that a super-packet of IPv4 may have on a device, in bytes:
// gso_ipv4_max_size, Linux 6.3. Above DefaultGSO it is called BIG TCP.
func (c *Conn) SetGSO(index, bytes int) error {
	if err := c.h.LinkSetGSOIPv4MaxSize(ref(index), bytes); err != nil {
		return fmt.Errorf("setting gso_ipv4_max_size to %d: %w", bytes, sentinel(err))
	}
	return nil
}
