package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/fastbr/fastbr/datapath"
)

// Definition is what a network is, whether or not it is up: the content of
// networks/NAME.json.
type Definition struct {
	ID         string       `json:"id"` // 64 hex digits
	Name       string       `json:"name"`
	Bridge     string       `json:"bridge"`
	Subnet     netip.Prefix `json:"subnet"`
	Gateway    netip.Addr   `json:"gateway"`
	MTU        int          `json:"mtu"` // bytes, 0: the uplink's
	Masquerade bool         `json:"masquerade"`
	Internal   bool         `json:"internal"`
	NoDNS      bool         `json:"no_dns,omitempty"` // the gateway does not answer for names

	// How containers are translated; "": the datapath's default.
	NATMapping      string `json:"nat_mapping"`
	NATFiltering    string `json:"nat_filtering"`
	NATOnExhaustion string `json:"nat_on_exhaustion"`

	// Options are an engine's own, kept for it with the network.
	Options map[string]string `json:"options,omitempty"`
}

func (d Definition) natPolicy() datapath.NATPolicy {
	return natPolicy(d.NATMapping, d.NATFiltering, d.NATOnExhaustion).WithDefaults()
}

// definitions is the directory of the networks that `network create` made.
type definitions struct {
	dir string
	say func(format string, args ...any)
}

func (d definitions) path(name string) string { return filepath.Join(d.dir, name+".json") }

// all reads every definition, sorted by name. One that cannot be read is told of
// and left out.
func (d definitions) all() ([]Definition, error) {
	files, err := os.ReadDir(d.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the definitions: %w", err)
	}
	var out []Definition
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		def, err := d.get(name)
		if err != nil {
			d.say("%v", err)
		}
		if def != nil {
			out = append(out, *def)
		}
	}
	slices.SortFunc(out, func(a, b Definition) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// get reads one definition; nil if there is none. The error wraps errDamaged for
// a file that is none.
func (d definitions) get(name string) (*Definition, error) {
	b, err := os.ReadFile(d.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the definition of %s: %w", name, err)
	}
	def := &Definition{}
	if err := json.Unmarshal(b, def); err != nil || def.Name != name || def.sane() != nil {
		return nil, fmt.Errorf("%s is %w: it is no definition of network %s", d.path(name), errDamaged, name)
	}
	return def, nil
}

func (d definitions) put(def Definition) error {
	b, err := json.MarshalIndent(def, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	if err := renameio.WriteFile(d.path(def.Name), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the definition of %s: %w", def.Name, err)
	}
	return nil
}

// remove deletes a definition, and the directories if they are empty.
func (d definitions) remove(name string) error {
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the definition of %s: %w", name, err)
	}
	_ = os.Remove(d.dir)
	_ = os.Remove(filepath.Dir(d.dir))
	return nil
}
