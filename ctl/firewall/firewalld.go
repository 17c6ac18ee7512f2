package firewall

// ofFirewalld tells that firewalld keeps the chain.
func (c *chain) ofFirewalld() bool { return c.table.name == "firewalld" }

const firewalldRemedy = "firewalld"
