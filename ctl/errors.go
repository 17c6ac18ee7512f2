package ctl

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The sentinels of this package; callers decide with errors.Is.
var (
	// ErrNotUp: the instance, or the network asked for, is not up.
	ErrNotUp = errors.New("not up")
	// ErrInvalid: the request is malformed, whatever the state of the host.
	ErrInvalid = errors.New("invalid")
	// ErrNoNetwork: no network of that name.
	ErrNoNetwork = errors.New("no such network")
	// ErrNoPort: no port, or publication, of that name.
	ErrNoPort = errors.New("no such port")
	// ErrExists: the name or address is taken, or a foreign object is in the way.
	ErrExists = errors.New("exists already")
	// ErrDiffers: the network is up with other settings than those expected.
	ErrDiffers = errors.New("differs")
	// ErrBroken: something of a port or of the datapath is not as it was made.
	ErrBroken = errors.New("broken")
	// ErrInUse: the network still has ports.
	ErrInUse = errors.New("in use")
	// ErrUnfit: the host cannot run fastbr.
	ErrUnfit = errors.New("this host cannot run fastbr")
)

// taggedError carries a sentinel without showing it: the text says it already.
type taggedError struct {
	text string
	tag  error
}

func (e taggedError) Error() string { return e.text }
func (e taggedError) Unwrap() error { return e.tag }

// tagged makes a one-line error that errors.Is finds under tag.
func tagged(tag error, text string) error { return taggedError{text, tag} }

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
