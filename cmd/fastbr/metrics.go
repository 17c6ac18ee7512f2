package main

import (
	"github.com/spf13/cobra"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/ctl/metrics"
)

func newMetricsCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the metrics once, as Prometheus would scrape them",
		Long: `Print the metrics once, in Prometheus' text format, and exit: for node_exporter's
textfile collector, or a look. Without anything up, fastbr_up is 0.`,
		Example: `  fastbr metrics
  fastbr metrics > /var/lib/prometheus/node-exporter/fastbr.prom`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := e.controller()
			if err != nil {
				return err
			}
			return metrics.Write(e.stdout, newGatherer(c))
		},
	}
}

func newGatherer(c *ctl.Controller) *metrics.Gatherer {
	v := buildVersion()
	return metrics.NewGatherer(c, metrics.Build{Version: v.Version, Revision: v.Revision, GoVersion: v.Go}, ctl.DropReasons())
}
