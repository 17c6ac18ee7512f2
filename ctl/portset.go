package ctl

import (
	"fmt"
	"strconv"
	"strings"
)

// portSet is a set of port numbers, as in ip_local_reserved_ports.
type portSet [65536 / 64]uint64

func (s *portSet) has(p uint16) bool { return s[p/64]&(1<<(p%64)) != 0 }
func (s *portSet) add(p uint16)      { s[p/64] |= 1 << (p % 64) }

// addRange adds first to last, inclusive.
func (s *portSet) addRange(first, last uint16) {
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

// portRange is the set of first to last, inclusive.
func portRange(first, last uint16) (s portSet) {
	s.addRange(first, last)
	return s
}

// parsePorts reads the kernel's notation: "8080,10000-29999".
func parsePorts(list string) (portSet, error) {
	var s portSet
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
		s.addRange(uint16(a), uint16(b))
	}
	return s, nil
}

func (s portSet) plus(o portSet) portSet {
	for i := range s {
		s[i] |= o[i]
	}
	return s
}

func (s portSet) minus(o portSet) portSet {
	for i := range s {
		s[i] &^= o[i]
	}
	return s
}

// String is the kernel's notation, normalised as the kernel does.
func (s portSet) String() string {
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
