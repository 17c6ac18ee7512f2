package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/fastbr/fastbr/ctl"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

type fakeSource struct {
	snap ctl.Snapshot
	err  error
}

func (f fakeSource) Snapshot(context.Context) (ctl.Snapshot, error) { return f.snap, f.err }

// busy is an instance with one network, one port and one uplink.
func busy() ctl.Snapshot {
	return ctl.Snapshot{
		Up: true,
		Networks: []ctl.NetworkView{{Name: "default", Up: true, Ports: []ctl.PortView{{
			Name: "web", Port: "veth1a2b3c4", Network: "default",
			Drops: map[string]uint64{"spoof_ip": 3},
			Paths: ctl.PortPaths{
				RXFastPackets: 1, RXFastBytes: 100, RXSlowPackets: 2, RXSlowBytes: 200,
				TXFastPackets: 3, TXFastBytes: 300, TXSlowPackets: 4, TXSlowBytes: 400,
			},
		}}}, {Name: "empty", Up: true}},
		Uplinks: []ctl.PortView{{Name: "eth0", Port: "eth0", Drops: map[string]uint64{},
			Paths: ctl.PortPaths{TXFastPackets: 5, TXFastBytes: 500}}},
		NAT: ctl.NATView{Flows: 7, FlowsOf: map[string]uint32{"ipv4": 5, "ipv6": 2}, FlowsMax: 262144, PortOverloads: 8, PortRemaps: 11, PortsReclaimed: 9, EarlyDrops: 12,
			PortTries: []uint64{20, 2, 1}, PortsNotFound: 3, Refused: map[string]uint64{"nat_full": 10}},
	}
}

func newFake(s ctl.Snapshot, err error) *Gatherer {
	return NewGatherer(fakeSource{s, err}, Build{Version: "1.2.3", Revision: "abc", GoVersion: "go1"}, []string{"spoof_ip", "direct"})
}

func exposed(t *testing.T, g *Gatherer) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, g); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// samples returns the lines of an exposition without the comments.
func samples(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestWriteShowsEverySample(t *testing.T) {
	const want = `fastbr_up 1
fastbr_build_info{goversion="go1",revision="abc",version="1.2.3"} 1
fastbr_port_receive_packets_total{name="web",network="default",path="fast",port="veth1a2b3c4"} 1
fastbr_port_receive_packets_total{name="web",network="default",path="slow",port="veth1a2b3c4"} 2
fastbr_port_receive_packets_total{name="eth0",network="",path="fast",port="eth0"} 0
fastbr_port_receive_packets_total{name="eth0",network="",path="slow",port="eth0"} 0
fastbr_port_receive_bytes_total{name="web",network="default",path="fast",port="veth1a2b3c4"} 100
fastbr_port_receive_bytes_total{name="web",network="default",path="slow",port="veth1a2b3c4"} 200
fastbr_port_receive_bytes_total{name="eth0",network="",path="fast",port="eth0"} 0
fastbr_port_receive_bytes_total{name="eth0",network="",path="slow",port="eth0"} 0
fastbr_port_transmit_packets_total{name="web",network="default",path="fast",port="veth1a2b3c4"} 3
fastbr_port_transmit_packets_total{name="web",network="default",path="slow",port="veth1a2b3c4"} 4
fastbr_port_transmit_packets_total{name="eth0",network="",path="fast",port="eth0"} 5
fastbr_port_transmit_packets_total{name="eth0",network="",path="slow",port="eth0"} 0
fastbr_port_transmit_bytes_total{name="web",network="default",path="fast",port="veth1a2b3c4"} 300
fastbr_port_transmit_bytes_total{name="web",network="default",path="slow",port="veth1a2b3c4"} 400
fastbr_port_transmit_bytes_total{name="eth0",network="",path="fast",port="eth0"} 500
fastbr_port_transmit_bytes_total{name="eth0",network="",path="slow",port="eth0"} 0
fastbr_port_dropped_packets_total{name="web",network="default",port="veth1a2b3c4",reason="spoof_ip"} 3
fastbr_port_dropped_packets_total{name="web",network="default",port="veth1a2b3c4",reason="direct"} 0
fastbr_port_dropped_packets_total{name="eth0",network="",port="eth0",reason="spoof_ip"} 0
fastbr_port_dropped_packets_total{name="eth0",network="",port="eth0",reason="direct"} 0
fastbr_network_ports{network="default"} 1
fastbr_network_ports{network="empty"} 0
fastbr_nat_flows 7
fastbr_nat_flows_max 262144
fastbr_nat_family_flows{family="ipv4"} 5
fastbr_nat_family_flows{family="ipv6"} 2
fastbr_nat_port_overloads_total 8
fastbr_nat_port_remaps_total 11
fastbr_nat_ports_reclaimed_total 9
fastbr_nat_early_drops_total 12
fastbr_nat_port_probes_bucket{le="1"} 20
fastbr_nat_port_probes_bucket{le="2"} 22
fastbr_nat_port_probes_bucket{le="3"} 23
fastbr_nat_port_probes_bucket{le="+Inf"} 26
fastbr_nat_port_probes_sum 36
fastbr_nat_port_probes_count 26
fastbr_nat_refused_total{reason="nat_full"} 10
fastbr_nat_refused_total{reason="quota"} 0
`
	if got := samples(exposed(t, newFake(busy(), nil))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWriteSaysWhenNothingIsUp(t *testing.T) {
	const want = `fastbr_up 0
fastbr_build_info{goversion="go1",revision="abc",version="1.2.3"} 1
`
	if got := samples(exposed(t, newFake(ctl.Snapshot{}, nil))); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWriteFailsWithoutSnapshot(t *testing.T) {
	err := Write(io.Discard, newFake(ctl.Snapshot{}, errors.New("lock is held")))
	if err == nil || !strings.Contains(err.Error(), "lock is held") {
		t.Errorf("error %v, want the snapshot's", err)
	}
}

// TestGathererIsConsistent runs the library's own checks, which a scrape skips:
// the families are in order, consistent and as the catalogue describes them.
func TestGathererIsConsistent(t *testing.T) {
	families, err := prometheus.Gatherers{prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := newFake(busy(), nil).Gather()
		return families, err
	})}.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(Catalogue()) {
		t.Errorf("%d families gathered, %d in the catalogue", len(families), len(Catalogue()))
	}
	described := map[string]Metric{}
	for _, m := range Catalogue() {
		described[m.Name] = m
	}
	for _, f := range families {
		for _, sample := range f.GetMetric() {
			var labels []string
			for _, l := range sample.GetLabel() {
				labels = append(labels, l.GetName())
			}
			if want := described[f.GetName()].Labels; !slices.Equal(labels, want) {
				t.Errorf("%s has the labels %v, want %v", f.GetName(), labels, want)
			}
		}
	}
}

// TestLabelsAreEscaped: any name survives the exposition format.
func TestLabelsAreEscaped(t *testing.T) {
	const name = "a\"b\\c\nd"
	snap := busy()
	snap.Networks[0].Ports[0].Name = name
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(exposed(t, newFake(snap, nil))))
	if err != nil {
		t.Fatal(err)
	}
	if got := families[nameReceivePackets].GetMetric()[0].GetLabel()[0].GetValue(); got != name {
		t.Errorf("name %q, want %q", got, name)
	}
}

func TestPromtoolAccepts(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	h, err := Handler(newFake(busy(), nil), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	_, served := get(h, "/metrics")
	for name, page := range map[string]string{
		"busy":   exposed(t, newFake(busy(), nil)),
		"down":   exposed(t, newFake(ctl.Snapshot{}, nil)),
		"served": served,
	} {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(page)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: promtool check metrics: %v\n%s", name, err, out)
		}
	}
}

func TestHandlerServesPages(t *testing.T) {
	h, err := Handler(newFake(busy(), nil), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/metrics": "\nfastbr_up 1\n",
		"/healthz": "ok\n",
		"/":        `<a href="/metrics">`,
	} {
		code, body := get(h, path)
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %q, want 200 with %q", path, code, body, want)
		}
	}
	if _, body := get(h, "/metrics"); !strings.Contains(body, "\ngo_goroutines ") || !strings.Contains(body, "\nprocess_open_fds ") {
		t.Error("the metrics of the process itself are missing")
	}
	if code, _ := get(h, "/nothing"); code != http.StatusNotFound {
		t.Errorf("GET /nothing: %d, want 404", code)
	}
}

func TestHandlerFailsScrapeWithoutSnapshot(t *testing.T) {
	var errs bytes.Buffer
	h, err := Handler(newFake(ctl.Snapshot{}, errors.New("lock is held")), &errs)
	if err != nil {
		t.Fatal(err)
	}
	code, body := get(h, "/metrics")
	if code != http.StatusInternalServerError || !strings.Contains(body, "lock is held") {
		t.Errorf("%d %q, want 500 and the reason", code, body)
	}
	if !strings.Contains(errs.String(), "lock is held") {
		t.Errorf("log %q, want the reason", errs.String())
	}
	if code, _ := get(h, "/healthz"); code != http.StatusOK {
		t.Error("the server itself is healthy and says it is not")
	}
}

func get(h http.Handler, path string) (int, string) {
	r := httptest.NewRecorder()
	h.ServeHTTP(r, httptest.NewRequest("GET", path, nil))
	return r.Code, r.Body.String()
}

// tool returns the path of a program that a test needs. In CI the program must
// exist.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is missing (Debian: apt-get install %s)", name, pkg)
	default:
		t.Skipf("SKIPPED, NOT TESTED: %s is missing (Debian: apt-get install %s)", name, pkg)
	}
	return ""
}
