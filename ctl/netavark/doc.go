// Package netavark is fastbr as a netavark plugin, API 1.0.0: the network
// driver "fastbr" for Podman with netavark 1.6 or newer. It translates the four
// commands to attachments of package ctl. It holds no state: Podman keeps the
// network configurations and sends them with each call.
package netavark
