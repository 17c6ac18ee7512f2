package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// move copies n bytes of an old value, at offset from, to offset to of a new
// one.
type move struct{ from, to, n uint32 }

// conversion converts values of one type to another. Fields are matched by
// name, and a field that only the new type has stays zero. A field that has
// become wider keeps its value, because all maps are little-endian.
type conversion struct {
	moves    []move
	from, to uint32 // sizes in bytes
}

func converting(from, to btf.Type) (conversion, error) {
	c := conversion{}
	f, err := btf.Sizeof(from)
	if err != nil {
		return c, err
	}
	t, err := btf.Sizeof(to)
	if err != nil {
		return c, err
	}
	c.from, c.to = uint32(f), uint32(t)
	return c, c.add(from, to, 0, 0)
}

// add plans the conversion of a part of the old type, at offset at, to a part
// of the new one, at offset dst.
func (c *conversion) add(from, to btf.Type, at, dst uint32) error {
	from, to = btf.UnderlyingType(from), btf.UnderlyingType(to)
	switch to := to.(type) {
	case *btf.Int, *btf.Enum:
		f, err := btf.Sizeof(from)
		if err != nil {
			return err
		}
		t, err := btf.Sizeof(to)
		if err != nil {
			return err
		}
		if f > t {
			return fmt.Errorf("a field of %d bytes has become one of %d", f, t)
		}
		c.moves = append(c.moves, move{at, dst, uint32(f)})
		return nil
	case *btf.Array:
		f, ok := from.(*btf.Array)
		if !ok {
			return fmt.Errorf("a %T has become an array", from)
		}
		fs, err := btf.Sizeof(f.Type)
		if err != nil {
			return err
		}
		ts, err := btf.Sizeof(to.Type)
		if err != nil {
			return err
		}
		for i := range min(f.Nelems, to.Nelems) {
			if err := c.add(f.Type, to.Type, at+i*uint32(fs), dst+i*uint32(ts)); err != nil {
				return err
			}
		}
		return nil
	case *btf.Struct:
		f, ok := from.(*btf.Struct)
		if !ok {
			return fmt.Errorf("a %T has become a struct", from)
		}
		if to.Name == "bpf_timer" || to.Name == "bpf_spin_lock" {
			return nil // fields of the kernel's own
		}
		for _, m := range to.Members {
			for _, o := range f.Members {
				if o.Name != m.Name {
					continue
				}
				if err := c.add(o.Type, m.Type, at+o.Offset.Bytes(), dst+m.Offset.Bytes()); err != nil {
					return fmt.Errorf("%s: %w", m.Name, err)
				}
			}
		}
		return nil
	}
	return fmt.Errorf("cannot convert to a %T", to)
}

// apply returns the converted value.
func (c conversion) apply(from []byte) []byte {
	to := make([]byte, c.to)
	c.into(to, from)
	return to
}

func (c conversion) into(to, from []byte) {
	for _, m := range c.moves {
		copy(to[m.to:m.to+m.n], from[m.from:m.from+m.n])
	}
}

// only restricts the conversion to the named fields of a struct.
func (c conversion) only(to btf.Type, fields ...string) conversion {
	out := conversion{from: c.from, to: c.to}
	s, _ := btf.UnderlyingType(to).(*btf.Struct)
	if s == nil {
		return out
	}
	for _, m := range s.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			continue
		}
		for _, name := range fields {
			if m.Name != name {
				continue
			}
			begin := m.Offset.Bytes()
			for _, mv := range c.moves {
				if mv.to >= begin && mv.to < begin+uint32(size) {
					out.moves = append(out.moves, mv)
				}
			}
		}
	}
	return out
}

// batchSize is the number of entries that one call reads from a map.
const batchSize = 4096

// errEnd ends a walk through a map.
var errEnd = errors.New("end of the walk")

// eachEntry calls f with the bytes of every key and value of a map; a per-CPU
// map's value holds those of all CPUs. In an array it starts at the index
// first. f may return errEnd to stop.
func eachEntry(m *ebpf.Map, first uint32, f func(key, value []byte) error) error {
	valueSize, keySize := int(valueBytes(m)), int(m.KeySize())
	atOnce := int(min(batchSize, m.MaxEntries()))
	keys, values := make([]byte, atOnce*keySize), make([]byte, atOnce*valueSize)
	cursor := make([]byte, max(keySize, 8))
	var in []byte
	if first > 0 {
		binary.NativeEndian.PutUint32(cursor, first-1)
		in = cursor
	}
	for {
		n, err := lookupBatch(m, in, cursor, keys, values, atOnce)
		end := errors.Is(err, fs.ErrNotExist)
		if err != nil && !end {
			return fmt.Errorf("reading map %s: %w", m, err)
		}
		for i := range n {
			err := f(keys[i*keySize:(i+1)*keySize], values[i*valueSize:(i+1)*valueSize])
			if errors.Is(err, errEnd) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		if end {
			return nil
		}
		in = cursor
	}
}

// valueBytes returns the size of a value as the kernel copies it, in bytes. A
// per-CPU map has a value for every possible CPU, each padded to 8 bytes.
func valueBytes(m *ebpf.Map) uint32 {
	if m.Type() != ebpf.PerCPUArray {
		return m.ValueSize()
	}
	return perCPU(m.ValueSize()) * uint32(ebpf.MustPossibleCPU())
}

func perCPU(size uint32) uint32 { return (size + 7) &^ 7 }

// lookupBatch is BPF_MAP_LOOKUP_BATCH of bpf(2), for values whose type is known
// only at run time. in and out may be the same.
func lookupBatch(m *ebpf.Map, in, out, keys, values []byte, atOnce int) (int, error) {
	attr := struct {
		in, out, keys, values unsafe.Pointer
		count, fd             uint32
		elemFlags, flags      uint64
	}{unsafe.Pointer(unsafe.SliceData(in)), unsafe.Pointer(unsafe.SliceData(out)), unsafe.Pointer(unsafe.SliceData(keys)),
		unsafe.Pointer(unsafe.SliceData(values)), uint32(atOnce), uint32(m.FD()), 0, 0}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_LOOKUP_BATCH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(m)
	if errno != 0 && errno != unix.ENOENT {
		return 0, errno
	}
	if errno != 0 {
		return int(attr.count), errno
	}
	return int(attr.count), nil
}

// copyMap fills a new map with the entries of an old one. It skips array
// elements that are all zero: they are so in the new map already.
func copyMap(to, from *ebpf.Map, spec *ebpf.MapSpec) error {
	oldKey, oldValue, err := mapTypes(from)
	if err != nil {
		return err
	}
	key, err := converting(oldKey, spec.Key)
	if err != nil {
		return fmt.Errorf("map %s: keys: %w", spec.Name, err)
	}
	value, err := converting(oldValue, spec.Value)
	if err != nil {
		return fmt.Errorf("map %s: values: %w", spec.Name, err)
	}
	array := to.Type() == ebpf.Array || to.Type() == ebpf.PerCPUArray
	return eachEntry(from, 0, func(k, v []byte) error {
		if array && (allZero(v) || binary.NativeEndian.Uint32(k) >= to.MaxEntries()) {
			return nil
		}
		if err := to.Put(key.apply(k), value.applyAll(v, to)); err != nil {
			return fmt.Errorf("filling map %s: %w", spec.Name, err)
		}
		return nil
	})
}

// applyAll converts a value; in a per-CPU map, those of all CPUs.
func (c conversion) applyAll(v []byte, to *ebpf.Map) any {
	if to.Type() != ebpf.PerCPUArray {
		return c.apply(v)
	}
	var out [][]byte
	for stride := int(perCPU(c.from)); len(v) >= stride; v = v[stride:] {
		out = append(out, c.apply(v))
	}
	return out
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
