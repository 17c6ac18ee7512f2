package firewall

import (
	"fmt"
	"strings"
)

// ofFirewalld tells that firewalld keeps the chain. It throws rules of others there
// away whenever it is reloaded, so we add none.
func (c *chain) ofFirewalld() bool { return c.table.name == "firewalld" }

// firewalldCommands let containers' traffic through firewalld: the bridges in a zone
// of their own, as Docker does with its bridges, and a policy for what comes to
// published ports.
func firewalldCommands(networks []Network) string {
	zone := "firewall-cmd --permanent --zone=fastbr --set-target=ACCEPT"
	for _, n := range networks {
		zone += " && firewall-cmd --permanent --zone=fastbr --add-interface=" + n.Bridge.Name
	}
	return strings.Join([]string{
		"firewall-cmd --permanent --new-zone=fastbr",
		zone,
		"firewall-cmd --permanent --new-policy=fastbr-forwarding",
		"firewall-cmd --permanent --policy=fastbr-forwarding --set-target=ACCEPT",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-ingress-zone=ANY",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-egress-zone=fastbr",
		"firewall-cmd --reload",
	}, " && ")
}

// remedy is what to do about a rule that drops, as the end of a sentence.
func remedy(by place, h Host) string {
	if by.chain.ofFirewalld() {
		return fmt.Sprintf(": give firewalld a zone for it: %s", firewalldCommands(h.Networks))
	}
	return ": accept it before that rule"
}
