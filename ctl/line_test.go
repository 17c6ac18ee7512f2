package ctl

import "testing"

func TestLineIsSafe(t *testing.T) {
	for text, want := range map[string]string{
		"no port web":             "no port web",
		"Käse 容器":                 "Käse 容器",
		"\x1b[31mred":             `\x1b[31mred`,
		"one\ntwo\n":              "one; two",
		"a\tb\rc\x00\x7f":         `a\tb\rc\x00\x7f`,
		"8-bit \x9b, C1 \u009b":   `8-bit \x9b, C1 \u009b`,
		"turned \u202e, \ufffd":   `turned \u202e, ` + "\ufffd",
		`quoted "\x1b" stays "a"`: `quoted "\x1b" stays "a"`,
	} {
		if got := Line(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
