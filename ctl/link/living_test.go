package link

import "testing"

func TestNetnsInode(t *testing.T) {
	for in, want := range map[string]uint64{"net:[4026531840]": 4026531840, "mnt:[4026531841]": 0, "/": 0, "socket:[1]": 0} {
		if got, ok := netnsInode(in); got != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", in, got, ok)
		}
	}
}
