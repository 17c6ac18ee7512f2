package ctl

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Line makes a message one line that is safe on a terminal: messages quote what
// users, engines and the kernel have said. Lines are joined by "; ", whatever does
// not print is written as Go would: \x1b, \u202e.
func Line(text string) string { return Plain(strings.Join(strings.FieldsFunc(text, isEnd), "; ")) }

func isEnd(r rune) bool { return r == '\n' }

// Plain writes what does not print as Go would, but for ends of lines.
func Plain(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if r == '\n' || strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(text[:n])
		} else {
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}
