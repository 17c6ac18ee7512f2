package harness

import (
	"context"
	"os"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fastbr/fastbr/internal/lab"
)

// PluginExec runs CNI plugins in a host of the lab, with Env added to their
// environment.
type PluginExec struct {
	invoke.DefaultExec
	Host *lab.Namespace
	Env  []string
}

// PluginExec runs plugins in the rig's host. fastbr finds the lab's directories there.
func (h *Rig) PluginExec() *PluginExec {
	return &PluginExec{Host: h.Host, Env: h.PluginEnv(),
		DefaultExec: invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, PluginDecoder: version.PluginDecoder{}}}
}

// ExecPlugin implements invoke.Exec.
func (x *PluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	err = x.Host.Do(func() error {
		out, err = x.RawExec.ExecPlugin(ctx, path, stdin, append(environ, x.Env...))
		return err
	})
	return out, err
}
