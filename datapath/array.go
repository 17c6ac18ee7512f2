package datapath

import (
	"errors"

	"github.com/cilium/ebpf"
)

// eachElement calls f with the elements of an array up to the index last: with
// each one's values, of which it has perElement, one or in a per-CPU array one for
// every CPU. They are read atOnce elements by a call, into the same memory: f must
// not keep them.
func eachElement[T any](m *ebpf.Map, atOnce, perElement int, last uint32, f func(i uint32, values []T)) error {
	keys, values := make([]uint32, atOnce), make([]T, atOnce*perElement)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := m.BatchLookup(cursor, keys, values, nil)
		end := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !end {
			return err
		}
		for i, key := range keys[:n] {
			if key > last {
				return nil
			}
			f(key, values[i*perElement:(i+1)*perElement])
		}
		if end {
			return nil
		}
	}
}
