package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// AnnounceARP sends a gratuitous ARP request for ip from the device, in the
// namespace of the calling thread. Hosts that know the address under another
// MAC address learn the new one.
func AnnounceARP(index int, ip netip.Addr, mac net.HardwareAddr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announcing %s: %w", ip, err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: index, Halen: 6}
	if err := unix.Sendto(fd, gratuitousARP(ip, mac), 0, to); err != nil {
		return fmt.Errorf("announcing %s: %w", ip, err)
	}
	return nil
}

// gratuitousARP returns the whole frame: a request whose sender and target
// address are the same.
func gratuitousARP(ip netip.Addr, mac net.HardwareAddr) []byte {
	a := ip.As4()
	f := make([]byte, 0, 42)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_ARP)
	f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
	f = append(f, mac...)
	f = append(f, a[:]...)
	f = append(f, 0, 0, 0, 0, 0, 0)
	return append(f, a[:]...)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
