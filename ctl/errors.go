package ctl

import "errors"

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
