// Package firewall is the only access to the host's packet filter, whichever program
// wrote its rules: nftables, iptables on nftables, iptables-legacy, firewalld, ufw.
//
// It reads the rules and runs them on packets of which some bits are known and others
// are not: a rule matches, does not match, or may match. So it knows what the host does
// with containers' traffic, and sends no packet to find out. It adds accept rules where
// forwarded packets are dropped by default, and a zone to firewalld. It works on the
// network namespace of the calling thread.
package firewall
