package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fastbr/fastbr/ctl"
	"github.com/fastbr/fastbr/internal/lab"
	"github.com/fastbr/fastbr/test/harness"
)

// serve starts `fastbr serve` on the lab's host, on a port that the kernel chooses. It
// returns the address of the metrics.
func (h *e2e) serve(t *testing.T, args ...string) (*exec.Cmd, netip.AddrPort) {
	t.Helper()
	c := h.Cmd(append([]string{"serve", "--metrics", "127.0.0.1:0"}, args...)...)
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	lines := bufio.NewScanner(errs)
	for lines.Scan() {
		_, rest, ok := strings.Cut(lines.Text(), "http://")
		if !ok {
			continue
		}
		at, err := netip.ParseAddrPort(strings.TrimSuffix(rest, "/metrics"))
		if err != nil {
			t.Fatalf("serve said %q", lines.Text())
		}
		go func() { _, _ = io.Copy(io.Discard, errs) }()
		return c, at
	}
	t.Fatalf("serve said nothing: %v", lines.Err())
	return nil, netip.AddrPort{}
}

// httpGet makes a request from inside a namespace.
func (h *e2e) httpGet(n *lab.Namespace, url string) (int, string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return n.DialTCP(ctx, netip.AddrPort{}, netip.MustParseAddrPort(addr))
		},
	}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func (h *e2e) scrape(t *testing.T, at netip.AddrPort) string {
	t.Helper()
	code, body, err := h.httpGet(h.Host, fmt.Sprintf("http://%s/metrics", at))
	if err != nil || code != http.StatusOK {
		t.Fatalf("scraping: %d %v %s", code, err, body)
	}
	return body
}

// requirePrometheus skips the test if the program, which `make deps` installs, is
// missing. In CI it fails the test.
func requirePrometheus(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("prometheus"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("prometheus is missing (Debian: apt-get install prometheus)")
		}
		t.Skip("SKIPPED, NOT TESTED: prometheus is missing (Debian: apt-get install prometheus)")
	}
}

func TestServeIsScrapedByPrometheus(t *testing.T) {
	t.Parallel()
	requirePrometheus(t)
	h := upE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1})
	_, at := h.serve(t)
	if r, err := h.Containers[0].Ping(h.Ctx, h.Outside.Addr, lab.PingOptions{}); err != nil || r.Received == 0 {
		t.Fatalf("ping: %+v %v", r, err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: fastbr
    static_configs: [{targets: ["%s"]}]
`, at), 0o644); err != nil {
		t.Fatal(err)
	}
	prom := h.Host.Exec(h.Ctx, "prometheus", "--config.file="+config, "--storage.tsdb.path="+dir,
		"--web.listen-address=127.0.0.1:9090", "--log.level=error")
	prom.Stderr = os.Stderr
	if err := prom.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = prom.Process.Kill(); _ = prom.Wait() }()

	query := "http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(`sum without (path) (fastbr_port_receive_packets_total{name="c1"})`)
	type sample struct {
		Metric map[string]string
		Value  [2]any
	}
	var found []sample
	err := lab.Poll(h.Ctx, func() (bool, error) {
		_, body, err := h.httpGet(h.Host, query)
		if err != nil {
			return false, nil // Prometheus does not listen yet
		}
		var answer struct{ Data struct{ Result []sample } }
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			return false, nil // "starting"
		}
		found = answer.Data.Result
		return len(found) > 0, nil
	})
	if err != nil {
		t.Fatalf("prometheus never had the sample: %v", err)
	}
	port := h.ports(t)["c1"]
	got := found[0]
	if len(found) != 1 || got.Metric["network"] != "default" || got.Metric["port"] != port.Port || got.Metric["job"] != "fastbr" {
		t.Errorf("prometheus has %v for port %+v", found, port)
	}
	if got.Value[1] == "0" {
		t.Error("prometheus counts no packets")
	}
}

// A scrape shows the same as `port ls` and as `fastbr metrics`.
func TestMetricsAgreeWithPorts(t *testing.T) {
	t.Parallel()
	h := upE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 2})
	if r, err := h.Containers[0].Ping(h.Ctx, h.Containers[1].Addr, lab.PingOptions{}); err != nil || r.Received == 0 {
		t.Fatalf("ping: %+v %v", r, err)
	}
	_, at := h.serve(t)
	var text, once string
	var p ctl.PortView
	waitFor(t, h.Ctx, "a while without a packet", func() bool { // the kernel repeats ARP requests, too
		before := h.ports(t)["c1"].RXBytes
		text, once = h.scrape(t, at), h.Must(t, "metrics")
		p = h.ports(t)["c1"]
		return p.RXBytes == before
	})
	labels := fmt.Sprintf(`{name="c1",network="default",path="%%s",port=%q}`, p.Port)
	for _, from := range []string{text, once} {
		fast := value(t, from, "fastbr_port_receive_bytes_total"+fmt.Sprintf(labels, "fast"))
		slow := value(t, from, "fastbr_port_receive_bytes_total"+fmt.Sprintf(labels, "slow"))
		if uint64(fast+slow) != p.RXBytes || p.RXBytes == 0 {
			t.Errorf("metrics say %v fast and %v slow bytes, port ls %d", fast, slow, p.RXBytes)
		}
		if up := value(t, from, "fastbr_up"); up != 1 {
			t.Errorf("fastbr_up %v", up)
		}
		if ports := value(t, from, `fastbr_network_ports{network="default"}`); ports != 2 {
			t.Errorf("fastbr_network_ports %v", ports)
		}
	}
}

// value is the value of one series in an exposition.
func value(t *testing.T, text, series string) (v float64) {
	t.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return v
		}
	}
	t.Fatalf("no series %s in\n%s", series, text)
	return 0
}

func TestServeWhenNothingIsUp(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1})
	if up := value(t, h.Must(t, "metrics"), "fastbr_up"); up != 0 {
		t.Errorf("metrics: fastbr_up %v before up", up)
	}
	c, at := h.serve(t)
	if up := value(t, h.scrape(t, at), "fastbr_up"); up != 0 {
		t.Errorf("fastbr_up %v before up", up)
	}
	h.Must(t, "up")
	if up := value(t, h.scrape(t, at), "fastbr_up"); up != 1 {
		t.Errorf("fastbr_up %v after up", up)
	}
	h.Must(t, "down", "--all")
	if up := value(t, h.scrape(t, at), "fastbr_up"); up != 0 {
		t.Errorf("fastbr_up %v after down", up)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("serve after SIGTERM: %v", err)
	}
}

func TestServePortTaken(t *testing.T) {
	t.Parallel()
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{})
	ln, err := h.Host.ListenTCP(netip.MustParseAddrPort("127.0.0.1:9469"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	r := h.Fastbr(t, "serve")
	if r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "127.0.0.1:9469 is taken") {
		t.Errorf("exit %d: %q, want 1 and one clear line", r.Code, r.Stderr)
	}
}

// With serve, a new rule reaches a running flow at once, though the lease is long.
func TestServeRevokesOnRuleChange(t *testing.T) {
	t.Parallel()
	h := upE2E(t, harness.Mode{Name: "fast"}, lab.Options{Containers: 1}, "--lease", "15s")
	h.serve(t)
	s := h.ServeTCP(t, h.Outside, netip.AddrPortFrom(h.Outside.Addr, 7))
	c, err := h.Containers[0].DialTCP(h.Ctx, netip.AddrPort{}, s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 20 { // until both directions have a lease
		if err := lab.Echo(h.Ctx, c, "warm"); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Host.NFT(h.Ctx, `table ip block { chain judge {
		type filter hook forward priority filter; policy accept;
		ip daddr `+s.Addr.Addr().String()+` drop
	}
	}`); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); ; {
		ctx, cancel := context.WithTimeout(h.Ctx, 2*time.Second)
		err := lab.Echo(ctx, c, "blocked?")
		cancel()
		if err != nil {
			return
		}
		if time.Since(begin) > 8*time.Second { // no lease ends so soon by itself
			t.Fatal("the flow still runs after the rule that blocks it")
		}
	}
}

// An interrupted demo removes its lab.
func TestDemoInterrupted(t *testing.T) {
	h := newE2E(t, harness.Mode{Name: "fast"}, lab.Options{})
	c := exec.CommandContext(h.Ctx, h.Bin, "--bpffs", h.BPFFS, "--state-dir", h.StateDir, "demo")
	c.Env = append(os.Environ(), "FASTBR_REFUSE_NETNS=/proc/1/ns/net")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var said strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		if strings.HasPrefix(lines.Text(), "── Throughput") {
			break
		}
	}
	waitFor(t, h.Ctx, "a client of iperf3", func() bool { return hasChild(c.Process.Pid, "iperf3", "-c") })
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	if err := c.Wait(); err == nil || c.ProcessState.ExitCode() != 1 {
		t.Errorf("demo after SIGINT: %v\n%s%s", err, &said, rest)
	}
	labs := regexp.MustCompile(`fblab-[0-9a-f]+`).FindAllString(said.String(), -1)
	if len(labs) < 2 {
		t.Fatalf("the demo names no labs:\n%s", &said)
	}
	for _, l := range labs {
		if left, _ := filepath.Glob("/run/netns/" + l + "*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	for _, dir := range []string{h.StateDir, filepath.Join(h.BPFFS, "fastbr")} {
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// hasChild reports whether a process has a child with all these words in its command line.
func hasChild(pid int, words ...string) bool {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(children)) {
			line, _ := os.ReadFile("/proc/" + child + "/cmdline")
			argv := strings.Split(string(line), "\x00")
			if !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(argv, w) }) {
				return true
			}
		}
	}
	return false
}
