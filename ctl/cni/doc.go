// Package cni is fastbr as a plugin of the Container Network Interface,
// versions 0.1.0 to 1.1.0: it translates the commands and configurations of CNI
// to attachments of package ctl, and their outcome to CNI's results and error
// codes. It holds no state; an attachment is known by network, container and
// interface (ctl.Owner).
//
// A configuration either names a fastbr network, which then gives out the
// addresses, or describes a bridge as the reference bridge plugin's does, with
// an IPAM plugin that is called on the way. The second kind becomes a fastbr
// network named like the bridge.
package cni
