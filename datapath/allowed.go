package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf"
)

// allowedTable is fbr_allowed and fbr_allowed_mac: what ports may send with besides their
// containers' own addresses.
type allowedTable struct{ d *Datapath }

func allowedMACKey(ifindex int, mac net.HardwareAddr) (tcFbrAllowedMacKey, error) {
	m, err := mac6(mac)
	return tcFbrAllowedMacKey{Port: uint32(ifindex), Mac: m}, err
}

// allowedAddrKeys returns the keys of fbr_allowed of a family.
func allowedAddrKeys(f family, p Port) (keys []string) {
	for _, prefix := range p.AllowedAddrs {
		if f.of(prefix.Addr()) {
			keys = append(keys, string(lpmKey(prefix, p.Ifindex)))
		}
	}
	return keys
}

func allowedMACKeys(p Port) (macs []tcFbrAllowedMacKey, err error) {
	for _, mac := range p.AllowedMACs {
		k, err := allowedMACKey(p.Ifindex, mac)
		if err != nil {
			return nil, err
		}
		macs = append(macs, k)
	}
	return macs, nil
}

// permit adds what a port may use. The error wraps ErrTooMany if there is no room.
func (at allowedTable) permit(p Port) error {
	macs, err := allowedMACKeys(p)
	if err != nil {
		return err
	}
	var one uint32 = 1
	for _, o := range at.d.families.loaded() {
		for _, k := range allowedAddrKeys(o.family, p) {
			err = errors.Join(err, o.maps[tcMapFbrAllowed].Put([]byte(k), &one))
		}
	}
	for i := range macs {
		err = errors.Join(err, at.d.maps.FbrAllowedMac.Put(&macs[i], &one))
	}
	if err != nil {
		return fmt.Errorf("adding allowed addresses: %w: %w", ErrTooMany, err)
	}
	return nil
}

// forbid removes everything else that a port might use until now, and ends the sessions
// of addresses that are none of its any more. If anything was removed, all leases end.
func (at allowedTable) forbid(p Port) error {
	macs, err := allowedMACKeys(p)
	if err != nil {
		return err
	}
	gone, err := deleteIf(at.d.maps.FbrAllowedMac, func(k *tcFbrAllowedMacKey, _ *uint32) bool {
		return k.Port == uint32(p.Ifindex) && !slices.Contains(macs, *k)
	})
	for _, o := range at.d.families.loaded() {
		keys := allowedAddrKeys(o.family, p)
		n, errAddrs := deleteEntries(o.maps[tcMapFbrAllowed], func(k, _ []byte) bool {
			return isLPMOf(p.Ifindex, k) && !slices.Contains(keys, string(k))
		})
		gone, err = gone+n, errors.Join(err, errAddrs)
	}
	if err != nil {
		return fmt.Errorf("removing allowed addresses: %w", err)
	}
	if gone == 0 {
		return nil
	}
	// What it still has, it holds again with its next packet.
	own, err := mac6(p.MAC)
	if err != nil {
		return err
	}
	_, err = deleteIf(at.d.maps.FbrFdb, func(k *tcFbrFdbKey, port *uint32) bool {
		return *port == uint32(p.Ifindex) && k.Mac != own
	})
	for _, o := range at.d.families.loaded() {
		_, errAddrs := deleteEntries(o.maps[tcMapFbrHolder], func(_, port []byte) bool {
			return binary.NativeEndian.Uint32(port) == uint32(p.Ifindex)
		})
		err = errors.Join(err, errAddrs)
	}
	if err != nil {
		return fmt.Errorf("removing allowed addresses: %w", err)
	}
	_, err = at.d.nat.end(tcFbrOpFBR_OP_FORBID, p.Ifindex)
	// Sessions that another port has begun may have leases that lead here.
	return errors.Join(err, at.d.Revoke())
}

// verify checks that a port may use exactly what AttachPort has told. The error wraps
// ErrDetached.
func (at allowedTable) verify(p Port) error {
	macs, err := allowedMACKeys(p)
	if err != nil {
		return err
	}
	same, err := hasExactly(at.d.maps.FbrAllowedMac, macs, func(k *tcFbrAllowedMacKey) bool { return k.Port == uint32(p.Ifindex) })
	for _, o := range at.d.families.loaded() {
		var there []string
		err = errors.Join(err, eachEntry(o.maps[tcMapFbrAllowed], 0, func(k, _ []byte) error {
			if isLPMOf(p.Ifindex, k) {
				there = append(there, string(k))
			}
			return nil
		}))
		want := allowedAddrKeys(o.family, p)
		slices.Sort(there)
		slices.Sort(want)
		same = same && slices.Equal(there, want)
	}
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("port with ifindex %d: the maps allow it other addresses: %w", p.Ifindex, ErrDetached)
	}
	return nil
}

// hasExactly reports whether those keys of a map of which f is true are the wanted ones,
// which differ from each other.
func hasExactly[K comparable](m *ebpf.Map, want []K, f func(*K) bool) (bool, error) {
	there := 0
	others, err := countIf(m, func(k *K, _ *uint32) bool {
		if !f(k) {
			return false
		}
		if slices.Contains(want, *k) {
			there++
			return false
		}
		return true
	})
	return others == 0 && there == len(want), err
}

// countIf returns the number of entries of a map of which f is true.
func countIf[K, V any](m *ebpf.Map, f func(*K, *V) bool) (n int, err error) {
	var (
		k K
		v V
	)
	it := m.Iterate()
	for it.Next(&k, &v) {
		if f(&k, &v) {
			n++
		}
	}
	if err := it.Err(); err != nil {
		return 0, fmt.Errorf("reading a map: %w", err)
	}
	return n, nil
}

// deleteIf removes the entries of a map of which f is true and returns their number.
func deleteIf[K, V any](m *ebpf.Map, f func(*K, *V) bool) (int, error) {
	var dead []K
	_, err := countIf(m, func(k *K, v *V) bool {
		if f(k, v) {
			dead = append(dead, *k)
		}
		return false
	})
	for i := range dead {
		if err == nil {
			err = deleteKey(m, &dead[i])
		}
	}
	return len(dead), err
}
