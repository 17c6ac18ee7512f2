// Package firewall is the one door to the host's packet filter, whichever program
// wrote it: nftables, iptables on nftables, iptables-legacy, firewalld, ufw.
//
// It reads the rules and runs them on packets of which some bits are known and
// others are not. So it can tell what the host does with containers' traffic,
// without a packet being sent: a rule matches, does not, or may. What it adds are
// accept rules where forwarded packets are dropped by default, and a zone of
// firewalld's. It works on the network namespace of the calling thread.
package firewall
