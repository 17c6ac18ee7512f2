package datapath

import (
	"errors"

	"github.com/cilium/ebpf"
)

// eachElement calls f with each element of an array, up to the index last.
// perElement is the number of values of an element: 1, or in a per-CPU array
// one for every CPU. One call reads atOnce elements into memory that the next
// call reuses, so f must not keep values.
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
