package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Announce sends a gratuitous ARP request or an unsolicited neighbour advertisement for
// ip from the device, in the namespace of the calling thread. Hosts that know the address
// under another MAC address learn the new one.
func Announce(index int, ip netip.Addr, mac net.HardwareAddr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announcing %s: %w", ip, err)
	}
	defer unix.Close(fd)
	protocol, frame := uint16(unix.ETH_P_ARP), gratuitousARP
	if ip.Is6() {
		protocol, frame = unix.ETH_P_IPV6, unsolicitedNA
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: index, Halen: 6}
	if err := unix.Sendto(fd, frame(ip, mac), 0, to); err != nil {
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

// unsolicitedNA returns the whole frame: a neighbour advertisement to all nodes, with the
// override flag and the target's MAC address (RFC 4861 section 7.2.6).
func unsolicitedNA(ip netip.Addr, mac net.HardwareAddr) []byte {
	const length = 32
	all, a := netip.IPv6LinkLocalAllNodes().As16(), ip.As16()
	na := []byte{136, 0, 0, 0, 1 << 5, 0, 0, 0}
	na = append(na, a[:]...)
	na = append(na, 2, 1) // target's link-layer address, in units of 8 bytes
	na = append(na, mac...)
	sum := uint32(length + unix.IPPROTO_ICMPV6)
	for _, part := range [][]byte{a[:], all[:], na} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(na[2:], ^uint16(sum))
	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0, 0, length, unix.IPPROTO_ICMPV6, 255)
	f = append(f, a[:]...)
	f = append(f, all[:]...)
	return append(f, na...)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
