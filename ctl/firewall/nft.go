package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRules reads the rules of a chain. The library's own reader has two faults. It
// fails on a "ct original" (google/nftables v0.3.0 takes NFTA_CT_DIRECTION for 32
// bits). It leaves out expressions that it does not know, so a rule seems to have fewer
// conditions.
func nftRules(c *nftables.Chain) (out []rule, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	defer conn.Close()
	where, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(c.Table.Name), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(c.Name), 0)},
	})
	if err != nil {
		return nil, err
	}
	family := byte(c.Table.Family)
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, where...),
	})
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if len(m.Data) < 4 {
			return nil, errors.New("a message without a header")
		}
		r, err := decodeRule(family, m.Data[4:])
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func decodeRule(family byte, b []byte) (r rule, err error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return r, err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_HANDLE:
			r.handle = ad.Uint64()
		case unix.NFTA_RULE_USERDATA:
			if d := ad.Bytes(); len(d) >= 2 {
				r.comment, _ = userdata.GetString(d, userdata.TypeComment)
			}
		case unix.NFTA_RULE_EXPRESSIONS:
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(one *netlink.AttributeDecoder) error {
						r.exprs = append(r.exprs, decodeExpr(family, one))
						return nil
					})
				}
				return nil
			})
		}
	}
	for _, e := range r.exprs { // iptables keeps the comment there
		if m, ok := e.(*expr.Match); ok {
			if c, ok := m.Info.(*xt.Comment); ok {
				r.comment = string(*c)
			}
		}
	}
	return r, ad.Err()
}

// expressions are those that run understands. All others are obscure.
var expressions = map[string]func() expr.Any{
	"bitwise":   func() expr.Any { return &expr.Bitwise{} },
	"byteorder": func() expr.Any { return &expr.Byteorder{} },
	"cmp":       func() expr.Any { return &expr.Cmp{} },
	"counter":   func() expr.Any { return &expr.Counter{} },
	"fib":       func() expr.Any { return &expr.Fib{} },
	"log":       func() expr.Any { return &expr.Log{} },
	"lookup":    func() expr.Any { return &expr.Lookup{} },
	"masq":      func() expr.Any { return &expr.Masq{} },
	"match":     func() expr.Any { return &expr.Match{} },
	"meta":      func() expr.Any { return &expr.Meta{} },
	"nat":       func() expr.Any { return &expr.NAT{} },
	"payload":   func() expr.Any { return &expr.Payload{} },
	"queue":     func() expr.Any { return &expr.Queue{} },
	"range":     func() expr.Any { return &expr.Range{} },
	"redir":     func() expr.Any { return &expr.Redir{} },
	"reject":    func() expr.Any { return &expr.Reject{} },
	"target":    func() expr.Any { return &expr.Target{} },
}

func decodeExpr(family byte, ad *netlink.AttributeDecoder) expr.Any {
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	switch name {
	case "notrack":
		return &expr.Notrack{}
	case "ct":
		return decodeCt(data)
	case "immediate":
		i := &expr.Immediate{}
		if expr.Unmarshal(family, data, i) == nil && i.Register == unix.NFT_REG_VERDICT {
			v := &expr.Verdict{}
			if expr.Unmarshal(family, data, v) == nil {
				return v
			}
		}
	default:
		if e := expressions[name]; e != nil {
			e := e()
			if expr.Unmarshal(family, data, e) == nil {
				return e
			}
		}
	}
	return obscure(name)
}

func decodeCt(data []byte) expr.Any {
	e := &expr.Ct{}
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return obscure("ct")
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ad.Uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DIRECTION:
			e.Direction = uint32(ad.Uint8())
		}
	}
	return e
}
