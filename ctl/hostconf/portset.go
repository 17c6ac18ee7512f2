package hostconf

import (
	"fmt"
	"strconv"
	"strings"
)

// PortSet is a set of port numbers, as in ip_local_reserved_ports.
type PortSet [65536 / 64]uint64

func (s *PortSet) has(p uint16) bool { return s[p/64]&(1<<(p%64)) != 0 }
func (s *PortSet) add(p uint16)      { s[p/64] |= 1 << (p % 64) }

// AddRange adds first to last, inclusive.
func (s *PortSet) AddRange(first, last uint16) {
	for p := int(first); p <= int(last); {
		if p%64 == 0 && p+63 <= int(last) {
			s[p/64] = ^uint64(0)
			p += 64
			continue
		}
		s.add(uint16(p))
		p++
	}
}

// PortRange is the set of first to last, inclusive.
func PortRange(first, last uint16) (s PortSet) {
	s.AddRange(first, last)
	return s
}

// ParsePorts reads the kernel's notation: "8080,10000-29999".
func ParsePorts(list string) (PortSet, error) {
	var s PortSet
	for item := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		if item == "" {
			continue
		}
		first, last, ok := strings.Cut(item, "-")
		if !ok {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return s, fmt.Errorf("port range %q is malformed", item)
		}
		s.AddRange(uint16(a), uint16(b))
	}
	return s, nil
}

// Plus is what is in either.
func (s PortSet) Plus(o PortSet) PortSet {
	for i := range s {
		s[i] |= o[i]
	}
	return s
}

// Minus is what is in s and not in o.
func (s PortSet) Minus(o PortSet) PortSet {
	for i := range s {
		s[i] &^= o[i]
	}
	return s
}

// String is the kernel's notation, normalised as the kernel does.
func (s PortSet) String() string {
	var items []string
	for p := 0; p < 65536; p++ {
		if !s.has(uint16(p)) {
			continue
		}
		first := p
		for p < 65535 && s.has(uint16(p+1)) {
			p++
		}
		if first == p {
			items = append(items, strconv.Itoa(p))
		} else {
			items = append(items, fmt.Sprintf("%d-%d", first, p))
		}
	}
	return strings.Join(items, ",")
}
