package ctl

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// nftChain is a native nftables chain that hooks forward with policy drop.
type nftChain struct {
	chain *nftables.Chain
}

// forwardChains are the filter chains on the forward hook that see IPv4.
func forwardChains() (*nftables.Conn, []*nftables.Chain, error) {
	return ipv4Chains(*nftables.ChainHookForward, nftables.ChainTypeFilter)
}

// ipv4Chains are the chains of a type on a hook that see IPv4.
func ipv4Chains(hook nftables.ChainHook, kind nftables.ChainType) (*nftables.Conn, []*nftables.Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("opening nftables: %w", err)
	}
	chains, err := conn.ListChains()
	// No nftables in this kernel: nothing of it can be in the way.
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return conn, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	return conn, slices.DeleteFunc(chains, func(c *nftables.Chain) bool {
		family := c.Table.Family
		return c.Hooknum == nil || *c.Hooknum != hook || c.Type != kind ||
			(family != nftables.TableFamilyIPv4 && family != nftables.TableFamilyINet)
	}), nil
}

// ofIPTables tells the chain that iptables-nft keeps its FORWARD rules in.
func ofIPTables(c *nftables.Chain) bool {
	return c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == "FORWARD"
}

func nftPlaces() ([]acceptor, error) {
	_, chains, err := forwardChains()
	if err != nil {
		return nil, err
	}
	var places []acceptor
	for _, c := range chains {
		if c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		// iptables shows, and keeps, only rules in its own form.
		if command := installed("iptables-nft", "iptables"); ofIPTables(c) && command != "" {
			places = append(places, iptables{command: command})
		} else {
			places = append(places, nftChain{c})
		}
	}
	return places, nil
}

func (n nftChain) where() string {
	family := "inet"
	if n.chain.Table.Family == nftables.TableFamilyIPv4 {
		family = "ip"
	}
	return fmt.Sprintf("nft %s %s %s", family, n.chain.Table.Name, n.chain.Name)
}

func (n nftChain) has(bridge, mark string) (bool, error) {
	_, missing, err := n.missing(bridge, mark)
	return len(missing) == 0, err
}

// missing returns which of the two matches no rule of ours makes.
func (n nftChain) missing(bridge, mark string) (*nftables.Conn, []expr.MetaKey, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("opening nftables: %w", err)
	}
	rules, err := conn.GetRules(n.chain.Table, n.chain)
	if err != nil {
		return nil, nil, fmt.Errorf("listing %s: %w", n.where(), err)
	}
	missing := []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME}
	for _, r := range rules {
		if ruleComment(r) == mark {
			missing = slices.DeleteFunc(missing, func(k expr.MetaKey) bool { return matchesDevice(r, k, bridge) })
		}
	}
	return conn, missing, nil
}

func (n nftChain) add(bridge, mark string) error {
	conn, missing, err := n.missing(bridge, mark)
	if err != nil {
		return err
	}
	for _, key := range missing {
		conn.AddRule(&nftables.Rule{Table: n.chain.Table, Chain: n.chain,
			UserData: userdata.AppendString(nil, userdata.TypeComment, mark),
			Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: deviceBytes(bridge)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("adding accept rules to %s: %w", n.where(), err)
	}
	return nil
}

// removeNFTRules deletes the rules with our comment, native ones and those that
// iptables-nft made.
func removeNFTRules(mark string) error {
	conn, chains, err := forwardChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		if command := installed("iptables-nft", "iptables"); ofIPTables(c) && command != "" {
			if err := (iptables{command: command}).remove(mark); err != nil {
				return err
			}
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return fmt.Errorf("listing %s: %w", nftChain{c}.where(), err)
		}
		for _, r := range rules {
			if ruleComment(r) != mark {
				continue
			}
			if err := conn.DelRule(r); err != nil {
				return fmt.Errorf("deleting from %s: %w", nftChain{c}.where(), err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("deleting accept rules: %w", err)
	}
	return nil
}

func ruleComment(r *nftables.Rule) string {
	if len(r.UserData) < 2 {
		return ""
	}
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return comment
}

func matchesDevice(r *nftables.Rule, key expr.MetaKey, device string) bool {
	if len(r.Exprs) < 2 {
		return false
	}
	meta, ok1 := r.Exprs[0].(*expr.Meta)
	cmp, ok2 := r.Exprs[1].(*expr.Cmp)
	return ok1 && ok2 && meta.Key == key && string(cmp.Data) == string(deviceBytes(device))
}

// deviceBytes is a device name as nftables compares it: all 16 bytes.
func deviceBytes(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
