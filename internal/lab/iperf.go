package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// IperfOptions are the options of one run of iperf3.
type IperfOptions struct {
	// Seconds is the sending time; 0: 10.
	Seconds int
	// Bytes is the amount to send, instead of Seconds; 0: by time.
	Bytes int64
	// Parallel is the number of streams; 0: one.
	Parallel int
	// Reverse: the server sends.
	Reverse bool
	// UDPBitrate, in bits per second, sends UDP instead of TCP; 0: TCP.
	UDPBitrate int64
	// Interval between samples, in seconds; 0: one.
	Interval float64
	// Omit is the number of seconds at the start that do not count (TCP slow
	// start).
	Omit int
	// Port of the server; 0: 5201.
	Port uint16
	// Congestion is the sender's congestion control, by the kernel's name; "":
	// the machine's.
	Congestion string
	// Via is the address to which the client connects if that is not the
	// server's own.
	Via netip.Addr
	// ClientCPU and ServerCPU pin the two processes; nil: anywhere.
	ClientCPU, ServerCPU *int
	// Batch runs both as SCHED_BATCH (sched(7)): waking up one of them does not
	// preempt the running process.
	Batch bool
}

// IperfResult holds the sums over all streams.
type IperfResult struct {
	// BitsPerSecond as counted by the receiver.
	BitsPerSecond float64
	// Bytes as counted by the receiver.
	Bytes int64
	// Retransmits of the sender (TCP).
	Retransmits int64
	// LostPackets as counted by the receiver (UDP).
	LostPackets int64
	// Intervals holds the rate of each sample in bits per second.
	Intervals []float64
	// Raw is iperf3's JSON output.
	Raw json.RawMessage
}

// iperfGrace is how long a run may take beyond its own length.
const iperfGrace = 30 * time.Second

// Iperf runs one iperf3 server in server, bound to addr, and one client in
// client. It returns the client's result. iperf3 must be installed.
func Iperf(ctx context.Context, client, server *Namespace, addr netip.Addr, o IperfOptions) (IperfResult, error) {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.Seconds+o.Omit)*time.Second+iperfGrace)
	defer cancel()
	srv := server.Exec(ctx, o.serverArgs(addr)...)
	var srvOut bytes.Buffer
	srv.Stdout, srv.Stderr = &srvOut, &srvOut
	if err := srv.Start(); err != nil {
		return IperfResult{}, err
	}
	defer func() { srv.kill(); _ = srv.Wait() }()
	if err := server.WaitListen(ctx, netip.AddrPortFrom(addr, o.Port)); err != nil {
		return IperfResult{}, fmt.Errorf("starting iperf3 server: %w", err)
	}
	to := addr
	if o.Via.IsValid() {
		to = o.Via
	}
	out, err := client.Exec(ctx, o.clientArgs(to)...).Output()
	r, perr := parseIperf(out)
	if perr != nil {
		return r, perr // iperf3 reports its errors in the JSON output
	}
	if err != nil {
		return r, fmt.Errorf("iperf3 %s to %v: %w", client.Name, to, err)
	}
	return r, nil
}

func (o IperfOptions) withDefaults() IperfOptions {
	if o.Seconds == 0 {
		o.Seconds = 10
	}
	if o.Parallel == 0 {
		o.Parallel = 1
	}
	if o.Interval == 0 {
		o.Interval = 1
	}
	if o.Port == 0 {
		o.Port = 5201
	}
	return o
}

func (o IperfOptions) command() []string {
	if o.Batch {
		return []string{"chrt", "--batch", "0", "iperf3"}
	}
	return []string{"iperf3"}
}

func (o IperfOptions) serverArgs(addr netip.Addr) []string {
	a := append(o.command(), "-s", "-1", "-B", addr.String(), "-p", strconv.Itoa(int(o.Port)))
	if o.ServerCPU != nil {
		a = append(a, "-A", strconv.Itoa(*o.ServerCPU))
	}
	return a
}

func (o IperfOptions) clientArgs(addr netip.Addr) []string {
	a := append(o.command(), "-c", addr.String(), "-p", strconv.Itoa(int(o.Port)), "-J",
		"-P", strconv.Itoa(o.Parallel), "-i", strconv.FormatFloat(o.Interval, 'f', -1, 64), "--connect-timeout", "5000")
	if o.Bytes > 0 {
		a = append(a, "-n", strconv.FormatInt(o.Bytes, 10))
	} else {
		a = append(a, "-t", strconv.Itoa(o.Seconds))
	}
	if o.Omit > 0 {
		a = append(a, "-O", strconv.Itoa(o.Omit))
	}
	if o.Reverse {
		a = append(a, "-R")
	}
	if o.UDPBitrate > 0 {
		a = append(a, "-u", "-b", strconv.FormatInt(o.UDPBitrate, 10))
	}
	if o.Congestion != "" {
		a = append(a, "-C", o.Congestion)
	}
	if o.ClientCPU != nil {
		a = append(a, "-A", strconv.Itoa(*o.ClientCPU))
	}
	return a
}

func parseIperf(out []byte) (IperfResult, error) {
	type sum struct {
		Bytes       int64
		BitsPerSec  float64 `json:"bits_per_second"`
		Retransmits int64
		LostPackets int64 `json:"lost_packets"`
	}
	var doc struct {
		Error     string
		Intervals []struct {
			Sum struct {
				sum
				Omitted bool
			}
		}
		End struct {
			Sum         sum // UDP: as received
			SumSent     sum `json:"sum_sent"`
			SumReceived sum `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return IperfResult{}, fmt.Errorf("reading iperf3's JSON: %w: %.200s", err, out)
	}
	recv := doc.End.SumReceived
	if recv.Bytes == 0 && doc.End.Sum.Bytes > 0 {
		recv = doc.End.Sum
	}
	r := IperfResult{
		BitsPerSecond: recv.BitsPerSec, Bytes: recv.Bytes,
		Retransmits: doc.End.SumSent.Retransmits, LostPackets: doc.End.Sum.LostPackets,
		Raw: out,
	}
	for _, iv := range doc.Intervals {
		if !iv.Sum.Omitted {
			r.Intervals = append(r.Intervals, iv.Sum.BitsPerSec)
		}
	}
	if doc.Error != "" {
		return r, fmt.Errorf("iperf3: %s", doc.Error)
	}
	return r, nil
}

// WaitListen waits until a TCP socket listens on exactly this address and port.
func (n *Namespace) WaitListen(ctx context.Context, at netip.AddrPort) error {
	// The table shows an address as 32-bit words of the machine, here little-endian.
	var addr string
	for w := range slices.Chunk(at.Addr().AsSlice(), 4) {
		addr += fmt.Sprintf("%02X%02X%02X%02X", w[3], w[2], w[1], w[0])
	}
	want := fmt.Sprintf(": %s:%04X %s:0000 0A ", addr, at.Port(), strings.Repeat("0", len(addr)))
	file := "/proc/thread-self/net/tcp"
	if at.Addr().Is6() {
		file += "6"
	}
	err := Poll(ctx, func() (bool, error) {
		var table []byte
		err := n.Do(func() (err error) {
			table, err = os.ReadFile(file)
			return err
		})
		return strings.Contains(string(table), want), err
	})
	if err != nil {
		return fmt.Errorf("waiting for a listener on %v in %s: %w", at, n.Name, err)
	}
	return nil
}

// pollEvery is the pause between two polls.
const pollEvery = 20 * time.Millisecond

// Poll calls cond until it returns true or an error, or ctx ends. It sleeps at
// least half of the time, so that what it waits for gets CPU.
func Poll(ctx context.Context, cond func() (bool, error)) error {
	for {
		began := time.Now()
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(pollEvery, time.Since(began))):
		}
	}
}
