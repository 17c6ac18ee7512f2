package hostconf

import (
	"fmt"
	"os"
	"strings"
)

// ReservedNow reads the kernel's list.
func ReservedNow() (PortSet, error) {
	text, err := readAll()
	if err != nil {
		return PortSet{}, fmt.Errorf("reading %s: %w", Name(Reserved), err)
	}
	set, err := ParsePorts(text)
	if err != nil {
		return set, fmt.Errorf("reading %s: %w", Name(Reserved), err)
	}
	return set, nil
}

// readAll reads the list. The kernel answers one read, with what fits, and has
// no more to say to a second.
func readAll() (string, error) {
	const usual, longest = 4 << 10, 65536 * len("65535,")
	text, err := readAtOnce(Reserved, usual)
	if len(text) == usual {
		text, err = readAtOnce(Reserved, longest)
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

// have is the kernel's list, and the part of it that is recorded as ours.
func (h *Host) have() (have, ours PortSet, err error) {
	if h.reserved == nil {
		now, err := ReservedNow()
		if err != nil {
			return have, ours, err
		}
		h.reserved = &now
	}
	if h.Reserved == nil {
		return *h.reserved, ours, nil
	}
	if ours, err = ParsePorts(h.Reserved.Added); err != nil {
		err = fmt.Errorf("reading the state: %w", err)
	}
	return *h.reserved, ours, err
}

func (h *Host) writeReserved(list PortSet) error {
	h.reserved = nil
	return Write(Reserved, list.String())
}

// RecordReserved notes what Reserve is about to add. The caller saves.
func (h *Host) RecordReserved(want PortSet) error {
	have, ours, err := h.have()
	if err != nil {
		return err
	}
	added := ours.Plus(want.Minus(have))
	if h.Reserved == nil || added != ours {
		h.Reserved = &Reservation{added.String()}
	}
	return nil
}

// Reserve brings the kernel's list to what is wanted: adds what was recorded, and
// takes back what is not wanted any more, which is forgotten with the next save.
func (h *Host) Reserve(want PortSet) error {
	have, ours, err := h.have()
	if err != nil {
		return err
	}
	idle := ours.Minus(want)
	kept := ours.Minus(idle)
	if list := have.Minus(idle).Plus(kept); list != have {
		if err := h.writeReserved(list); err != nil {
			return err
		}
	}
	h.Reserved = &Reservation{kept.String()}
	return nil
}

// unreserve takes back all that is ours.
func (h *Host) unreserve() error {
	if h.Reserved == nil {
		return nil
	}
	have, ours, err := h.have()
	if err != nil || ours == (PortSet{}) {
		return err
	}
	return h.writeReserved(have.Minus(ours))
}
