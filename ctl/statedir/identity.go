// Package statedir keeps what lies beside the state of each instance below the state
// directory: its lock, and whose it is. By that it finds and removes what instances
// have left whose namespace is gone.
package statedir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/fastbr/fastbr/ctl/link"
)

// Identity says, in an instance's directory, which namespace it belongs to and
// where its pins are, so that the leftovers of a dead one can be found.
type Identity struct {
	Netns link.NetnsID `json:"netns"`
	Boot  string       `json:"boot"` // the kernel's boot id
	Pins  string       `json:"pins"` // the directory's base is the instance's name
}

const identityFile = "instance.json"

// Write makes the directory of an instance, and makes it recognisable.
func (id Identity) Write(dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("writing the instance's identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, identityFile), b, 0o600); err != nil {
		return fmt.Errorf("writing the instance's identity: %w", err)
	}
	return nil
}

// RemoveIdentity removes the identity, and the directory if it is empty then.
func RemoveIdentity(dir string) {
	_ = os.Remove(filepath.Join(dir, identityFile))
	_ = os.Remove(dir)
}

// Sweep removes instances whose namespace is gone, below the same state directory.
// unpin removes a directory of pins. Whatever is not certain stays; nothing here is
// worth failing the user's command for, so an error is a note.
func Sweep(root string, self Identity, unpin func(dir string) error, say func(format string, args ...any)) {
	dirs, err := os.ReadDir(root)
	if err != nil {
		return
	}
	var known link.Living
	for _, d := range dirs {
		if !d.IsDir() || d.Name() == filepath.Base(self.Pins) {
			continue
		}
		id, err := read(filepath.Join(root, d.Name()))
		if err != nil {
			continue
		}
		if id.Boot == self.Boot {
			if lives, err := known.Has(id.Netns); err != nil {
				return
			} else if lives {
				continue
			}
		} else {
			id.Pins = "" // gone with their boot: the path may be somebody else's now
		}
		if err := remove(root, d.Name(), id.Pins, unpin); err != nil {
			say("the leftovers of instance %s stay: %v", d.Name(), err)
		}
	}
}

func read(dir string) (Identity, error) {
	var id Identity
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err == nil && (id.Netns.Ino == 0 || id.Boot == "") {
		err = errors.New("incomplete")
	}
	return id, err
}

// remove removes the instance of that name unless somebody works on it.
func remove(root, name, pins string, unpin func(dir string) error) error {
	dir := filepath.Join(root, name)
	l, err := tryAcquire(dir + ".lock")
	if err != nil || l == nil {
		return nil // somebody works on it: not dead
	}
	defer l.Release()
	if filepath.Base(pins) == name {
		if err := unpin(pins); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	l.Remove()
	return nil
}
