// Package ctl is fastbr's control plane: it turns what the user asks for into
// bridges, veth pairs, addresses and sysctls (ctl/link) and into datapath
// state, and undoes all of it without a trace.
//
// A Controller works on one instance: the network namespace that the calling
// thread is in when Open is called, and in which every later call must be made.
// Nothing is kept in memory between two operations. Each takes the instance's
// lock, reads the state file, finishes or undoes what a killed predecessor
// left, acts in named steps that can be undone, and writes what it is about to
// own before it makes it.
package ctl
