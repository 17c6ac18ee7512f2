// Package testutil is what tests of several packages share and internal/lab cannot
// be: frames with right (or deliberately wrong) headers, requirements that skip
// honestly, a printed seed, bare namespaces and a private bpffs. Only _test.go
// files may import it.
package testutil
