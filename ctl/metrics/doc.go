// Package metrics shows a fastbr instance to Prometheus.
//
// It holds no state: each scrape asks its Source for one snapshot, read under
// one lock, and makes metric families of it. So a scrape is consistent in itself,
// works from `fastbr serve` and from the one-shot `fastbr metrics` alike, and
// counters go on where they were when `serve` is restarted, because they live in
// the kernel.
//
// Directions are the port's, as in `ip -s link show` of the host's end of the
// veth pair: "receive" is what the bridge received from the container.
package metrics
