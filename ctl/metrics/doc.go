// Package metrics exports a fastbr instance to Prometheus.
//
// It holds no state. Each scrape asks its Source for one snapshot, which is
// read under one lock, so a scrape is consistent in itself. `fastbr serve` and
// the one-shot `fastbr metrics` give the same figures, and counters continue
// when `serve` restarts, because they live in the kernel.
//
// Directions are the port's, as `ip -s link show` gives them for the host end:
// "receive" is what the bridge received from the container.
package metrics
