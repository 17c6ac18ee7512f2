package ctl

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/fastbr/fastbr/datapath"
)

// errDamaged: a file that fastbr wrote is not as it wrote it.
var errDamaged = errors.New("damaged")

// aside is what a damaged file is called from then on.
func aside(path string) string { return path + ".damaged" }

// former is the state as it was before the last save, for when that is damaged.
func former(path string) string { return path + ".former" }

// setAside keeps a damaged file for whoever wants to look at it.
func (c *Controller) setAside(path string) error {
	err := os.Rename(path, aside(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// usableState is loadState for who may change the state: a damaged one is set
// aside, and the rest of it, and of the one before, is used.
func (c *Controller) usableState() (st *state, salvaged bool, err error) {
	st, err = loadState(c.statePath(), c.boot)
	if !errors.Is(err, errDamaged) {
		return st, false, err
	}
	st = salvage(c.boot, former(c.statePath()), c.statePath())
	if err := c.setAside(c.statePath()); err != nil {
		return nil, false, fmt.Errorf("setting the damaged state aside: %w", err)
	}
	c.say("%v: kept as %s; from it and the state before it %d network(s) and %d port(s) are known",
		err, aside(c.statePath()), len(st.Networks), len(st.indexes())-len(st.Uplinks))
	return st, true, st.save(c.statePath())
}

// settle ends the doubt about what a salvaged state calls unfinished, which may
// have been finished since: what is there in full is.
func (rep repair) settle() {
	if rep.op.dp == nil {
		return
	}
	for _, n := range rep.op.st.Networks {
		if d, err := rep.op.conn.ByName(n.Bridge); n.Pending && err == nil && d.Alias == ownerMark(n.Name) && d.Up {
			n.Index, n.Pending, n.Defining = d.Index, false, false
		}
		for _, p := range n.Ports {
			d, err := rep.op.conn.ByName(p.Port)
			if at, errAt := rep.op.dp.PortAt(p.IP); p.Pending && errors.Join(err, errAt) == nil && at == d.Index && d.Master == n.Index && d.Up {
				p.Index, p.Pending = d.Index, false
			}
			for _, pub := range p.Publications {
				if pub.Pending && !slices.ContainsFunc(p.toDatapath([]*publication{pub}), func(to datapath.Publication) bool { return rep.op.dp.VerifyPublication(to) != nil }) {
					pub.Pending = false
				}
			}
		}
	}
}

// salvage reads what can be read of states, the older first: a later one counts
// for what both have.
func salvage(boot string, paths ...string) *state {
	found := newState(boot)
	ports := map[[2]string]*port{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, len(text)+1)
		for first := true; lines.Scan(); first = false {
			if first {
				head := newState(boot)
				if json.Unmarshal(lines.Bytes(), head) == nil && head.Boot == boot && head.Version <= StateVersion && head.sane() == nil {
					found = head
				}
				continue
			}
			r := portRecord{port: &port{}}
			if json.Unmarshal(lines.Bytes(), &r) == nil && r.port.sane() == nil {
				ports[[2]string{r.Network, r.Port}] = r.port
			}
		}
	}
	for of, p := range ports {
		if n := found.Networks[of[0]]; n != nil {
			n.addPort(p)
		}
	}
	return found
}

// sane is an error for what a valid JSON text may lack.
func (st *state) sane() error {
	for name, n := range st.Networks {
		if n == nil || n.Name != name || n.Definition.sane() != nil {
			return fmt.Errorf("network %q is incomplete", name)
		}
		for _, p := range n.Ports {
			if p == nil || p.sane() != nil {
				return fmt.Errorf("a port of network %q is incomplete", name)
			}
		}
	}
	return nil
}

func (p *port) sane() error {
	if p.Port == "" || !p.IP.Is4() || slices.Contains(p.Publications, nil) {
		return fmt.Errorf("port %q is incomplete", p.Port)
	}
	return nil
}

func (d Definition) sane() error {
	if checkNetworkName(d.Name) != nil || d.Bridge == "" || !d.Gateway.Is4() || !d.Subnet.IsValid() || !d.Subnet.Contains(d.Gateway) {
		return fmt.Errorf("network %q is incomplete", d.Name)
	}
	return nil
}

// definition reads a network's definition; nil if there is none. One that is
// damaged is set aside, and written again if the network is up; else the error
// wraps errDamaged.
func (op *operation) definition(name string) (*Definition, error) {
	def, err := op.defs.get(name)
	if !errors.Is(err, errDamaged) {
		return def, err
	}
	n := op.st.Networks[name]
	if n == nil || n.Pending {
		return nil, fmt.Errorf("%w: run 'fastbr network rm %s'", err, name)
	}
	if err := op.discardDefinition(name, err); err != nil {
		return nil, err
	}
	return &n.Definition, op.defs.put(n.Definition)
}

// discardDefinition sets a damaged definition aside.
func (op *operation) discardDefinition(name string, why error) error {
	path := op.defs.path(name)
	if err := op.setAside(path); err != nil {
		return err
	}
	op.say("%v: kept as %s", why, aside(path))
	return nil
}
