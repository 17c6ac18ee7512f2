package datapath

import "errors"

// The sentinels of this package. Every error wraps at most one of them, so
// callers decide with errors.Is and never by text.
var (
	// ErrNotLoaded: no datapath is pinned in the given directory.
	ErrNotLoaded = errors.New("datapath is not loaded")
	// ErrExists: a datapath is already pinned there.
	ErrExists = errors.New("datapath is already loaded")
	// ErrSchemaNewer: the pins were made by a newer build with another map layout.
	ErrSchemaNewer = errors.New("the datapath was made by a newer fastbr")
	// ErrSchemaOlder: another build, not a newer one, made the pins with another
	// map layout. Upgrade converts them.
	ErrSchemaOlder = errors.New("the datapath was made by an older fastbr")
	// ErrNotSupported: the running kernel lacks something the datapath needs.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrSlotTaken: another device occupies the slot of this ifindex (ifindex
	// modulo MaxDevices). Use a device with another ifindex.
	ErrSlotTaken = errors.New("device slot is taken")
	// ErrDetached: a device is not in the maps, or its programs are not attached.
	ErrDetached = errors.New("detached")
	// ErrXDPTaken: another XDP program is on the device.
	ErrXDPTaken = errors.New("another XDP program is attached")
	// ErrTooMany: a fixed table (devices, networks) is full.
	ErrTooMany = errors.New("table is full")
)
