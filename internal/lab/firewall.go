package lab

import (
	"context"
	"encoding/json"
	"fmt"
)

// NFT loads a ruleset in nft's language (`nft -f -`). A closing brace must be
// on a line of its own: older versions insist.
func (n *Namespace) NFT(ctx context.Context, ruleset string) error {
	if _, err := n.RunInput(ctx, ruleset, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("loading nft rules in %s: %w", n.Name, err)
	}
	return nil
}

// IPTables runs `iptables -w ARGS`, as Docker and ufw do.
func (n *Namespace) IPTables(ctx context.Context, args ...string) error {
	if _, err := n.Run(ctx, append([]string{"iptables", "-w"}, args...)...); err != nil {
		return fmt.Errorf("setting iptables rules in %s: %w", n.Name, err)
	}
	return nil
}

// RuleCounter returns the packets counted by the rules with the given comment,
// in any nft table. It fails if there is no such rule.
func (n *Namespace) RuleCounter(ctx context.Context, comment string) (packets uint64, err error) {
	out, err := n.Run(ctx, "nft", "-j", "list", "ruleset")
	if err != nil {
		return 0, err
	}
	var doc struct {
		Nftables []struct {
			Rule *struct {
				Comment string
				Expr    []struct {
					Counter *struct{ Packets uint64 }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return 0, fmt.Errorf("reading nft's JSON: %w", err)
	}
	found := false
	for _, o := range doc.Nftables {
		if o.Rule == nil || o.Rule.Comment != comment {
			continue
		}
		for _, e := range o.Rule.Expr {
			if e.Counter != nil {
				packets += e.Counter.Packets
				found = true
			}
		}
	}
	if !found {
		return 0, fmt.Errorf("no nft rule with a counter and the comment %q in %s", comment, n.Name)
	}
	return packets, nil
}
