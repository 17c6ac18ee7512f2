// Package testutil holds what the tests of several packages share besides internal/lab:
// frames with right or deliberately wrong headers, requirements that skip a test only
// where they may, a printed seed, bare namespaces and a private bpffs. Only _test.go
// files may import it.
package testutil
