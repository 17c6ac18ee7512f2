package ipam

import (
	"net/netip"
	"slices"
	"testing"
)

// TestMinimal: no two prefixes of the result overlap, however many lie in one.
func TestMinimal(t *testing.T) {
	t.Parallel()
	p := netip.MustParsePrefix
	got := Minimal([]netip.Prefix{p("10.2.0.0/16"), p("10.0.0.0/8"), p("10.1.0.0/16"), p("10.1.2.0/24"), p("11.0.0.0/24"), p("11.0.0.0/24")})
	if want := []netip.Prefix{p("10.0.0.0/8"), p("11.0.0.0/24")}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
