package ctl

import (
	"fmt"
	"os"
	"strings"
)

// reservation is what we added to ip_local_reserved_ports. Sockets of the host
// that let the kernel choose their port, which no program of ours sees, then get
// neither one of the NAT range nor a published one, whose answers would go to the
// container.
type reservation struct {
	Added string `json:"added"`
}

// wantReserved are the ports to be reserved, pending publications included.
func (op *operation) wantReserved() portSet {
	set := portRange(op.st.Settings.NATFirst, op.st.Settings.NATLast)
	for _, n := range op.st.Networks {
		for _, p := range n.Ports {
			for _, pub := range p.Publications {
				set.addRange(pub.First, pub.Last)
			}
		}
	}
	return set
}

// reservedNow reads the kernel's list.
func reservedNow() (portSet, error) {
	text, err := readReserved()
	if err != nil {
		return portSet{}, fmt.Errorf("reading %s: %w", sysctlName(sysReserved), err)
	}
	set, err := parsePorts(text)
	if err != nil {
		return set, fmt.Errorf("reading %s: %w", sysctlName(sysReserved), err)
	}
	return set, nil
}

// readReserved reads the list. The kernel answers one read, with what fits, and has
// no more to say to a second.
func readReserved() (string, error) {
	const usual, longest = 4 << 10, 65536 * len("65535,")
	text, err := readAtOnce(sysReserved, usual)
	if len(text) == usual {
		text, err = readAtOnce(sysReserved, longest)
	}
	return strings.TrimSpace(text), err
}

func readAtOnce(path string, size int) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, size)
	n, err := f.Read(b)
	return string(b[:n]), err
}

// reserved reads the kernel's list, and the part of it that is recorded as ours.
func (op *operation) reserved() (have, ours portSet, err error) {
	if have, err = reservedNow(); err != nil || op.st.Reserved == nil {
		return have, ours, err
	}
	if ours, err = parsePorts(op.st.Reserved.Added); err != nil {
		err = fmt.Errorf("reading the state: %w", err)
	}
	return have, ours, err
}

// recordReserved notes what reserve is about to add. The caller saves.
func (op *operation) recordReserved() error {
	have, ours, err := op.reserved()
	if err != nil {
		return err
	}
	added := ours.plus(op.wantReserved().minus(have))
	if op.st.Reserved == nil || added != ours {
		op.st.Reserved = &reservation{added.String()}
	}
	return nil
}

// reserve brings the kernel's list to what is wanted: adds what was recorded, and
// takes back what is not wanted any more, which is forgotten with the next save.
func (op *operation) reserve() error {
	have, ours, err := op.reserved()
	if err != nil {
		return err
	}
	idle := ours.minus(op.wantReserved())
	kept := ours.minus(idle)
	if list := have.minus(idle).plus(kept); list != have {
		if err := writeSysctl(sysReserved, list.String()); err != nil {
			return err
		}
	}
	op.st.Reserved = &reservation{kept.String()}
	return nil
}

// unreserve takes back all that is ours.
func (op *operation) unreserve() error {
	if op.st.Reserved == nil {
		return nil
	}
	have, ours, err := op.reserved()
	if err != nil || ours == (portSet{}) {
		return err
	}
	return writeSysctl(sysReserved, have.minus(ours).String())
}
