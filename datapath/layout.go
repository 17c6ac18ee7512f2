package datapath

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// layout returns what programs that share a map must agree on: the map's shape,
// in a readable form that can be compared. It includes the names of fields, by
// which conversion matches them, but not those of types.
func layout(typ ebpf.MapType, key, value string, maxEntries, flags uint32) string {
	entries := ""
	if maxEntries != 0 {
		entries = fmt.Sprintf("[%d]", maxEntries)
	}
	return fmt.Sprintf("%s%s %s -> %s flags %#x", strings.ToLower(typ.String()), entries, key, value, flags)
}

// untyped: the kernel takes no types for maps without keys.
func untyped(typ ebpf.MapType) bool { return typ == ebpf.Queue || typ == ebpf.Stack }

func sizeOf(bytes uint32) string { return fmt.Sprintf("%d bytes", bytes) }

// shape describes how a type lies in memory.
func shape(t btf.Type) string {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		if t.Encoding == btf.Signed {
			return fmt.Sprintf("s%d", t.Size*8)
		}
		return fmt.Sprintf("u%d", t.Size*8)
	case *btf.Enum:
		return fmt.Sprintf("u%d", t.Size*8)
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", shape(t.Type), t.Nelems)
	case *btf.Struct:
		var b strings.Builder
		for _, m := range t.Members {
			fmt.Fprintf(&b, "%s@%d %s; ", m.Name, m.Offset.Bytes(), shape(m.Type))
		}
		return fmt.Sprintf("{%ssize %d}", b.String(), t.Size)
	default:
		return fmt.Sprint(t)
	}
}

// specLayout returns the layout of a map of the object file. sized means that
// the number of entries is set at creation and is no part of the layout.
func specLayout(s *ebpf.MapSpec, sized bool) string {
	n := s.MaxEntries
	if sized {
		n = 0
	}
	if untyped(s.Type) {
		return layout(s.Type, "none", sizeOf(s.ValueSize), n, s.Flags)
	}
	return layout(s.Type, shape(s.Key), shape(s.Value), n, s.Flags)
}

// pinnedLayout returns the layout of a map in the kernel.
func pinnedLayout(m *ebpf.Map, sized bool) (string, error) {
	n := m.MaxEntries()
	if sized {
		n = 0
	}
	if untyped(m.Type()) {
		return layout(m.Type(), "none", sizeOf(m.ValueSize()), n, m.Flags()), nil
	}
	key, value, err := mapTypes(m)
	if err != nil {
		return "", err
	}
	return layout(m.Type(), shape(key), shape(value), n, m.Flags()), nil
}

// mapTypes returns the types of a map's keys and values, as the build that made
// the map described them.
func mapTypes(m *ebpf.Map) (key, value btf.Type, err error) {
	// struct bpf_map_info, include/uapi/linux/bpf.h, as far as needed
	var info struct {
		typ, id, keySize, valueSize, maxEntries, flags uint32
		name                                           [16]byte
		ifindex, vmlinuxValue                          uint32
		netnsDev, netnsIno                             uint64
		btf, key, value, _                             uint32
	}
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(m.FD()), uint32(unsafe.Sizeof(info)), unsafe.Pointer(&info)}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return nil, nil, fmt.Errorf("asking the kernel about map %s: %w", m, errno)
	}
	if info.btf == 0 {
		return nil, nil, fmt.Errorf("map %s has no type information", m)
	}
	h, err := btf.NewHandleFromID(btf.ID(info.btf))
	if err != nil {
		return nil, nil, fmt.Errorf("opening the types of map %s: %w", m, err)
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the types of map %s: %w", m, err)
	}
	if key, err = spec.TypeByID(btf.TypeID(info.key)); err == nil {
		value, err = spec.TypeByID(btf.TypeID(info.value))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the types of map %s: %w", m, err)
	}
	return key, value, nil
}

// pinned reports whether a map of the object file is pinned. Others (.rodata)
// live as long as the programs.
func pinned(name string) bool { return name[0] != '.' }

// layouts returns the layouts of all pinned maps of an object file, by name.
func layouts(spec *ebpf.CollectionSpec) map[string]string {
	sized := sizes(tcFbrMeta{})
	out := map[string]string{}
	for name, m := range spec.Maps {
		if pinned(name) {
			_, free := sized[name]
			out[name] = specLayout(m, free)
		}
	}
	return out
}

// differences returns the names of the maps that differ between two sets of
// layouts, sorted.
func differences(a, b map[string]string) []string {
	var out []string
	for name, l := range a {
		if b[name] != l {
			out = append(out, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
