package testutil

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Rand returns a source of random numbers. Its seed is printed with -v, and when the
// test fails. FASTBR_TEST_SEED repeats a run with that seed.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("FASTBR_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("FASTBR_TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("repeat with FASTBR_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
