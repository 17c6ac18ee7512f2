package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/fastbr/fastbr/internal/lab"
	"golang.org/x/sys/unix"
)

// Environment is what the numbers depend on besides the contestants.
type Environment struct {
	Kernel      string            `json:"kernel"`
	CPU         string            `json:"cpu"`
	Cores       int               `json:"cores"`
	Hypervisor  bool              `json:"hypervisor"`
	Mitigations map[string]string `json:"mitigations"` // vulnerability → mitigation; vulnerabilities that do not affect the CPU are left out
	MemoryGiB   float64           `json:"memory_gib"`
	LoadBefore  float64           `json:"load_before"` // one-minute load average: other load on the machine
	MTU         int               `json:"mtu"`
	Offloads    map[string]string `json:"offloads"`               // of a container's eth0
	Congestion  string            `json:"tcp_congestion_control"` // of bulk transfers
	NFCall      string            `json:"bridge_nf_call_iptables"`
	BPFJIT      string            `json:"bpf_jit_enable"`
	BPFStats    string            `json:"bpf_stats_enabled"` // 1 would slow fastbr down
	Fastbr      string            `json:"fastbr"`
	Commit      string            `json:"commit"`
	Go          string            `json:"go"`
	Iperf       string            `json:"iperf3"`
}

// ReadEnvironment describes the machine and the lab of a contestant. What it
// cannot read stays empty.
func ReadEnvironment(ctx context.Context, l *lab.Lab, version, commit string) Environment {
	e := Environment{
		Congestion: congestion,
		Cores:      runtime.NumCPU(), Go: runtime.Version(), Fastbr: version, Commit: commit,
		Mitigations: mitigations("/sys/devices/system/cpu/vulnerabilities"),
		BPFJIT:      line("/proc/sys/net/core/bpf_jit_enable"),
		BPFStats:    line("/proc/sys/kernel/bpf_stats_enabled"),
		Iperf:       firstLine(ctx, "iperf3", "--version"),
	}
	if e.Commit == "" {
		e.Commit = firstLine(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12")
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		e.Kernel = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	}
	e.CPU, e.Hypervisor = cpuInfo("/proc/cpuinfo")
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		e.MemoryGiB = float64(int(float64(info.Totalram)*float64(info.Unit)/(1<<30)*10)) / 10
	}
	e.LoadBefore, _ = strconv.ParseFloat(strings.Fields(line("/proc/loadavg") + " 0")[0], 64)
	e.NFCall, _ = l.Host.Sysctl("net.bridge.bridge-nf-call-iptables")
	if len(l.Containers) > 0 {
		e.readDevice(ctx, l.Containers[0])
	}
	return e
}

// readDevice reads the properties of a container's eth0.
func (e *Environment) readDevice(ctx context.Context, n *lab.Namespace) {
	if out, err := n.Run(ctx, "ip", "-o", "link", "show", "eth0"); err == nil {
		if _, rest, ok := strings.Cut(out, " mtu "); ok {
			e.MTU, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	out, err := n.Run(ctx, "ethtool", "-k", "eth0")
	if err != nil {
		return // no ethtool: the offloads of a veth pair are the kernel's defaults anyway
	}
	e.Offloads = map[string]string{}
	for l := range strings.Lines(out) {
		name, state, ok := strings.Cut(strings.TrimSpace(l), ": ")
		if ok && !strings.HasPrefix(l, "\t") && !strings.Contains(state, "[fixed]") {
			e.Offloads[name] = state
		}
	}
}

// mitigations reads the CPU vulnerabilities in sysfs.
func mitigations(dir string) map[string]string {
	m := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if state := line(f); state != "" && state != "Not affected" {
			m[filepath.Base(f)] = state
		}
	}
	return m
}

func cpuInfo(path string) (model string, hypervisor bool) {
	b, _ := os.ReadFile(path)
	for l := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(l, ":")
		switch strings.TrimSpace(key) {
		case "model name", "Model":
			model = strings.TrimSpace(value)
		case "flags":
			hypervisor = strings.Contains(value, " hypervisor")
		}
	}
	if model == "" {
		model = runtime.GOARCH
	}
	return model, hypervisor
}

// line returns the first line of a small file, or "" if it cannot be read.
func line(path string) string {
	b, _ := os.ReadFile(path)
	first, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(first)
}

func firstLine(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(first)
}

// userHZ is the ticks per second of /proc/stat, fixed by the kernel's ABI.
const userHZ = 100

// busyCPU returns the time in seconds that all cores together were busy since
// boot.
func busyCPU() (float64, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	return parseBusy(s.Text())
}

func parseBusy(cpu string) (float64, error) {
	fields := strings.Fields(cpu)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("reading the CPU time: unexpected line %q", cpu)
	}
	var busy float64
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		ticks, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time: %w", err)
		}
		if i != 3 && i != 4 {
			busy += ticks
		}
	}
	return busy / userHZ, nil
}
