// Package netavark is fastbr as a netavark plugin, API 1.0.0: the network
// driver "fastbr" of Podman with netavark 1.6 or newer. It translates the four
// commands to attachments of package ctl and holds no state: Podman keeps the
// networks' configurations and sends them along each time.
package netavark
