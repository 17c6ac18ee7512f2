package link

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Path is the only way for what comes in by one device, in a family: a routing table of its
// own, and the rule that leads there before every rule but the one for the host's own
// addresses. The table has the routes that other tables have by the devices Out. To
// everything else there is none.
type Path struct {
	Family
	In    string // name of the device
	Table int
	Out   []int // ifindexes
	// Point is a device of Out that needs no next hop: it leads everywhere that no route
	// leads to. 0: none.
	Point int
	Other []int // tables of other paths
}

// firstTable is where the search for a free table begins.
const firstTable = 0xfb00

// The last two metrics: that of a route by Point, and that of no route.
const (
	lastMetric = math.MaxUint32 - 1
	noneMetric = math.MaxUint32
)

// FreeTable returns a routing table that no route and no rule uses, of either family, and
// that is not in taken.
func FreeTable(c *Conn, taken []int) (int, error) {
	var routes []netlink.Route
	var rules []netlink.Rule
	for _, f := range families {
		moreRoutes, err := routesOfAll(c, f)
		if err != nil {
			return 0, err
		}
		moreRules, err := rulesOf(c, f)
		if err != nil {
			return 0, err
		}
		routes, rules = append(routes, moreRoutes...), append(rules, moreRules...)
	}
	table := firstTable
	for slices.Contains(taken, table) || slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Table == table }) ||
		slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == table }) {
		table++
	}
	return table, nil
}

// pathChange is what a path lacks, and what it has that it should not have.
type pathChange struct {
	rule      []netlink.Rule
	route     []netlink.Route
	oldRules  []netlink.Rule
	oldRoutes []netlink.Route
}

// Lacks says what of a path is not as Set would make it, "" if nothing is.
func (p Path) Lacks(c *Conn) (string, error) {
	change, err := p.compare(c)
	switch {
	case err != nil:
		return "", err
	case len(change.rule) > 0:
		return fmt.Sprintf("the rule that leads what comes in by %s to table %d is missing", p.In, p.Table), nil
	case len(change.route)+len(change.oldRoutes)+len(change.oldRules) > 0:
		return fmt.Sprintf("table %d has not the routes that it should have", p.Table), nil
	}
	return "", nil
}

// Set makes a path, or makes it as it should be. The route to nowhere comes first, then
// the rule.
func (p Path) Set(c *Conn) error {
	change, err := p.compare(c)
	if err != nil {
		return err
	}
	for i, r := range change.route {
		if i == 1 {
			if err := addRules(c, change.rule); err != nil {
				return err
			}
			change.rule = nil
		}
		if err := c.h.RouteReplace(&r); err != nil {
			return fmt.Errorf("adding the route to %v to table %d: %w", r.Dst, p.Table, sentinel(err))
		}
	}
	if err := addRules(c, change.rule); err != nil {
		return err
	}
	return removePath(c, change.oldRules, change.oldRoutes)
}

// RemovePath removes the rules that lead to a table, and the table, of both families. It
// succeeds when there is none.
func RemovePath(c *Conn, table int) error {
	var errs []error
	for _, f := range families {
		change, err := Path{Family: f, Table: table}.compare(c)
		if err == nil {
			err = removePath(c, change.oldRules, change.oldRoutes)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// RemovePathsFrom removes the paths for what comes in by a device, whatever their tables.
func RemovePathsFrom(c *Conn, device string) error {
	var errs []error
	for _, f := range families {
		rules, err := rulesOf(c, f)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		routes, err := routesOfAll(c, f)
		errs = append(errs, err)
		for _, rule := range rules {
			if rule.IifName == device && slices.ContainsFunc(routes, func(r netlink.Route) bool {
				return r.Table == rule.Table && r.Type == unix.RTN_UNREACHABLE && uint32(r.Priority) == noneMetric
			}) {
				errs = append(errs, RemovePath(c, rule.Table))
			}
		}
	}
	return errors.Join(errs...)
}

func addRules(c *Conn, rules []netlink.Rule) error {
	for _, r := range rules {
		if err := c.h.RuleAdd(&r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding the rule for %s: %w", r.IifName, sentinel(err))
		}
	}
	return nil
}

func removePath(c *Conn, rules []netlink.Rule, routes []netlink.Route) error {
	for _, r := range rules {
		if err := c.h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("deleting the rule for %s: %w", r.IifName, sentinel(err))
		}
	}
	for _, r := range routes {
		if err := c.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(sentinel(err), ErrNotFound) {
			return fmt.Errorf("deleting the route to %v of table %d: %w", r.Dst, r.Table, sentinel(err))
		}
	}
	return nil
}

// compare looks at a path. Of one without a device nothing should be there.
func (p Path) compare(c *Conn) (change pathChange, err error) {
	all, err := routesOfAll(c, p.Family)
	if err != nil {
		return change, err
	}
	rules, err := rulesOf(c, p.Family)
	if err != nil {
		return change, err
	}
	want := p.routes(all)
	for _, r := range want {
		if !slices.ContainsFunc(all, func(have netlink.Route) bool { return have.Table == p.Table && p.sameRoute(have, r) }) {
			change.route = append(change.route, r)
		}
	}
	for _, have := range all {
		if have.Table == p.Table && !slices.ContainsFunc(want, func(r netlink.Route) bool { return p.sameRoute(have, r) }) {
			change.oldRoutes = append(change.oldRoutes, have)
		}
	}
	rule := p.rule(rules)
	there := false
	for _, have := range rules {
		switch {
		case have.Table != p.Table:
		case p.In != "" && !there && sameRule(have, rule):
			there = true
		default:
			change.oldRules = append(change.oldRules, have)
		}
	}
	if p.In != "" && !there {
		change.rule = []netlink.Rule{rule}
	}
	return change, nil
}

// routes are what the table should have. all are the routes of all tables; of two to the same
// destination with the same metric, the first counts.
func (p Path) routes(all []netlink.Route) []netlink.Route {
	if p.In == "" {
		return nil
	}
	everywhere := ipNet(p.any())
	out := []netlink.Route{{Dst: everywhere, Type: unix.RTN_UNREACHABLE, Table: p.Table, Priority: noneMetric}}
	add := func(r netlink.Route) {
		if !slices.ContainsFunc(out, func(o netlink.Route) bool {
			return o.Priority == r.Priority && o.Tos == r.Tos && fromRoute(o, p.Family).Dst == fromRoute(r, p.Family).Dst
		}) {
			out = append(out, r)
		}
	}
	// A next hop is reached by the routes to its subnet, which must be there before.
	slices.SortStableFunc(all, func(a, b netlink.Route) int { return btoi(via(a)) - btoi(via(b)) })
	for _, r := range all {
		if to := fromRoute(r, p.Family); !to.Leads || to.Dst.Addr().IsLinkLocalUnicast() && p.Family == IPv6 || r.Table == p.Table || slices.Contains(p.Other, r.Table) {
			continue
		}
		hops := r.MultiPath
		if len(hops) == 0 {
			hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Encap: r.Encap, Flags: r.Flags}}
		}
		dst := r.Dst
		if dst == nil {
			dst = everywhere
		}
		for _, hop := range hops {
			if slices.Contains(p.Out, hop.LinkIndex) {
				add(netlink.Route{Table: p.Table, Dst: dst, LinkIndex: hop.LinkIndex, Gw: hop.Gw, Via: hop.Via, Encap: hop.Encap,
					Flags: hop.Flags & unix.RTNH_F_ONLINK, Src: r.Src, Scope: r.Scope, Priority: r.Priority, Tos: r.Tos,
					MTU: r.MTU, MTULock: r.MTULock, AdvMSS: r.AdvMSS, Type: unix.RTN_UNICAST})
			}
		}
	}
	if p.Point != 0 {
		add(netlink.Route{Table: p.Table, Dst: everywhere, LinkIndex: p.Point, Scope: netlink.SCOPE_LINK, Priority: lastMetric, Type: unix.RTN_UNICAST})
	}
	return out
}

// via reports whether a route has a next hop.
func via(r netlink.Route) bool { return r.Gw != nil || r.Via != nil || len(r.MultiPath) > 0 }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// rule is the one that leads to the table, behind the first for the host's own addresses.
func (p Path) rule(rules []netlink.Rule) netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.IifName, r.Table, r.Priority = int(p.Family), p.In, p.Table, 1
	for _, have := range rules {
		if have.Table == unix.RT_TABLE_LOCAL {
			r.Priority = have.Priority + 1
			break
		}
	}
	return *r
}

func sameRule(a, b netlink.Rule) bool {
	return a.IifName == b.IifName && a.Table == b.Table && a.Priority == b.Priority && !a.Invert && a.OifName == "" &&
		a.Src == nil && a.Dst == nil && a.Mark == 0 && a.Tos == 0 && a.IPProto == 0 && a.Sport == nil && a.Dport == nil &&
		a.UIDRange == nil && a.Goto < 0 && a.SuppressPrefixlen < 0 && a.SuppressIfgroup < 0
}

// sameRoute reports whether two routes of a table lead the same way. IPv6 says that a route
// to nowhere leads to lo.
func (p Path) sameRoute(a, b netlink.Route) bool {
	sameVia := a.Via == nil && b.Via == nil || a.Via != nil && b.Via != nil && a.Via.Equal(b.Via)
	return fromRoute(a, p.Family).Dst == fromRoute(b, p.Family).Dst && (a.LinkIndex == b.LinkIndex || a.Type == unix.RTN_UNREACHABLE) && a.Gw.Equal(b.Gw) && sameVia && a.Type == b.Type &&
		a.Priority == b.Priority && a.Tos == b.Tos && a.MTU == b.MTU && a.AdvMSS == b.AdvMSS && a.Src.Equal(b.Src) &&
		(a.Flags^b.Flags)&unix.RTNH_F_ONLINK == 0 && len(a.MultiPath) == 0
}

func routesOfAll(c *Conn, of Family) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	list, err := dump(func() ([]netlink.Route, error) {
		return c.h.RouteListFiltered(int(of), filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	return list, nil
}

func rulesOf(c *Conn, of Family) ([]netlink.Rule, error) {
	// The library's request does not stand strict checking.
	err := c.h.SetStrictCheck(false)
	list, listErr := dump(func() ([]netlink.Rule, error) { return c.h.RuleList(int(of)) })
	if err = errors.Join(err, listErr, c.h.SetStrictCheck(true)); err != nil {
		return nil, fmt.Errorf("listing routing rules: %w", err)
	}
	return list, nil
}
