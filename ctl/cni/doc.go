// Package cni is fastbr as a plugin of the Container Network Interface,
// versions 0.1.0 to 1.1.0. It translates CNI commands and configurations to
// attachments of package ctl, and their outcome to CNI results and error codes.
// It holds no state: an attachment is identified by network, container and
// interface (ctl.Owner).
//
// A configuration either names a fastbr network, which gives out the addresses,
// or describes a bridge in the terms of the reference bridge plugin. The latter
// calls an IPAM plugin for addresses, and becomes a fastbr network named like
// the bridge.
package cni
