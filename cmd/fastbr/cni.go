package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl/cni"
)

func newCNICmd(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "Be the CNI plugin of containerd, CRI-O, nerdctl and Podman",
		Long: `The CNI plugin. The binary itself is the plugin: started without arguments and
with CNI_COMMAND in its environment, it does what the runtime asks. A network's
configuration has "type": "fastbr" and either "network": NAME, a network of
fastbr's, or the keys of the reference bridge plugin, unchanged.`,
		Example: "  fastbr cni install",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCNIInstallCmd(e))
	return cmd
}

func newCNIInstallCmd(e *env) *cobra.Command {
	var binDir, confDir string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the plugin and an example network where CNI runtimes look",
		Long: `Put the plugin where CNI runtimes look: a link to this binary, and an example list
for the default network, 99-fastbr.conflist. A list that is there already is kept
as it is; a plugin that is not fastbr's is not overwritten.`,
		Example: `  fastbr cni install
  fastbr cni install --bin-dir /usr/lib/cni`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			self, err := os.Executable()
			if err == nil {
				self, err = filepath.EvalSymlinks(self)
			}
			if err != nil {
				return fmt.Errorf("finding this binary: %w", err)
			}
			done, err := cni.Install(self, binDir, confDir)
			for _, line := range done {
				e.note("%s", line)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&binDir, "bin-dir", "/opt/cni/bin", "`DIR` of the plugins")
	cmd.Flags().StringVar(&confDir, "conf-dir", "/etc/cni/net.d", "`DIR` of the network lists")
	return cmd
}
