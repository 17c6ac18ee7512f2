package fuzz

// seeds are inputs that use every shape from every sender, with and without tags,
// headers and damage.
func seeds() (all [][]byte) {
	var input []byte
	n := 0
	add := func(r recipe, more ...byte) {
		input = append(input, r.From, r.Shape, r.MACs, r.Src, r.Dst, r.Ports, r.Spoil, r.Tags, r.Virtio, r.Patches, r.Size)
		input = append(input, more...)
		if n++; n%maxShots == 0 {
			all, input = append(all, input), nil
		}
	}
	for from := range uint8(shooters) {
		for s := range uint8(len(shapes)) { // each shape, as it is and with a tag
			add(recipe{From: from, Shape: s})
			if s%4 == 0 {
				add(recipe{From: from, Shape: s, Tags: 1}, s>>2)
			}
		}
		for a := range uint8(len(addresses)) { // from and to every address
			add(recipe{From: from, Src: a})
			add(recipe{From: from, Dst: a, Shape: a % 12})
		}
		for m := range uint8(len(macs)) {
			add(recipe{From: from, MACs: m << 4})
			add(recipe{From: from, MACs: m})
			add(recipe{From: from, MACs: m, Dst: 7}) // the host
			add(recipe{From: from, MACs: m, Shape: 29})
		}
		for p := range uint8(len(ports)) {
			add(recipe{From: from, Ports: p, Dst: 7 * (p & 1)})
			add(recipe{From: from, Ports: p << 4, Shape: p % 8})
		}
		for e := range uint8(len(icmpErrors)) { // errors about the sender's own flow
			for about := range uint8(5) {
				add(recipe{From: from, Shape: icmpErrorShape}, e, about, 0, 0)
			}
			add(recipe{From: from, Shape: icmpErrorShape}, e, 0, 11, 28)
			add(recipe{From: from, Shape: icmpErrorShape, Src: 2}, e, e%5, e, 24)
		}
		for _, t := range [][]byte{{0}, {5 << 1}, {1}, {1, 0}, {0, 1, 5 << 1}, {0x30}, {1, 0x30}, {0, 0, 0, 0, 0, 0, 0, 0, 0}} {
			for _, s := range []uint8{0, 1, 8, icmpErrorShape, 14} {
				r := recipe{From: from, Shape: s, Tags: uint8(len(t))}
				if s == icmpErrorShape {
					add(r, append([]byte{0, 0, 0, 0}, t...)...)
					continue
				}
				add(r, t...)
				r.Dst = 1 + s%2*3 // a container's own address
				add(r, t...)
			}
		}
		for spoil := range uint8(128) {
			if spoil%3 == 0 {
				add(recipe{From: from, Shape: spoil % 3, Spoil: spoil})
			}
		}
		for _, s := range []uint8{0, 1, 2, 8, 14, 15, 20, 27} {
			add(recipe{From: from, Shape: s, Virtio: zeroHeader})
			add(recipe{From: from, Shape: s, Virtio: partial})
			add(recipe{From: from, Shape: s, Virtio: partial, Dst: 2, MACs: 2}) // to a2
			add(recipe{From: from, Shape: s, Virtio: partial, Tags: 1}, 0)
			add(recipe{From: from, Shape: s, Virtio: partial, Spoil: wrongL4Sum})
			add(recipe{From: from, Shape: s, Virtio: gso}, 32)
			add(recipe{From: from, Shape: s, Virtio: gso, Ports: 3, Dst: 7}, 100)
			for gsoType := range uint8(7) {
				add(recipe{From: from, Shape: s, Virtio: anyHeader, Size: extended}, 0x0b, 0xb8, 1, gsoType, 0, 42, 5, 0, 0, 34, 0, 6)
			}
		}
		for _, aim := range [][2]byte{{20, 2}, {20, 4}, {20, 6}, {20, 8}, {20, 10}, {20, 12}, {26, 0}, {30, 0}, {32, 0}, {33, 1}, {34, 0}, {34, 2}, {34, 4}, {34, 8}, {34, 16}, {35, 5}, {41, 1}, {0, 6}, {14, 10}, {14, 12}} {
			add(recipe{From: from, Virtio: partialAny}, aim[:]...)
			add(recipe{From: from, Virtio: partialAny, Dst: 2, MACs: 2}, aim[:]...)
		}
		for _, size := range []byte{0, 13, 14, 20, 33, 34, 38, 42, 50} {
			for _, s := range []uint8{0, 1, 8, 27} {
				add(recipe{From: from, Shape: s, Size: truncated}, 0, size)
			}
		}
		for _, size := range []uint16{1, 1400, 1472, 1473, 4000, 8900, 11000} {
			add(recipe{From: from, Size: extended}, byte(size>>8), byte(size))
			add(recipe{From: from, Size: extended, Virtio: partial, Shape: 2}, byte(size>>8), byte(size))
		}
		add(recipe{From: from, Size: padded}, 40)
		add(recipe{From: from, Shape: 0, Patches: 1}, 14, 0x65) // not version 4
		add(recipe{From: from, Shape: 0, Patches: 1}, 14, 0x44) // a header length that is too short
		add(recipe{From: from, Shape: 0, Patches: 1}, 14, 0x4f)
		add(recipe{From: from, Shape: 2, Patches: 1}, 46, 0xf0)
	}
	if input != nil {
		all = append(all, input)
	}
	return append(all, nil, []byte{0x80}, append([]byte{0x81, 0}, "a frame of text that is none"...))
}
