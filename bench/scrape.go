package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// scrapesAtOnce is the number of scrapes averaged into one time, so that each
// has its share of serve's garbage collections.
const scrapesAtOnce = 10

// prometheusAccepts is the Accept header of Prometheus 3.
const prometheusAccepts = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5," +
	"application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"

// scrapes times what Prometheus does: GETs on one connection to a running
// `fastbr serve`. CPU is that of all threads of serve.
func (w *stopwatch) scrapes(ctx context.Context, step string, serve ...string) (err error) {
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9469)
	c := w.host.Exec(ctx, append(serve, "--metrics", at.String())...)
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.Process.Signal(syscall.SIGTERM), c.Wait())
	}()
	if err := w.host.WaitListen(ctx, at); err != nil {
		return err
	}
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.host.DialTCP(ctx, netip.AddrPort{}, at)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	url := fmt.Sprintf("http://%v/metrics", at)
	if err := get(ctx, client, url); err != nil { // the first allocates serve's buffers
		return err
	}
	for range controlRepeats {
		used, err := cpuTime(c.Process.Pid)
		if err != nil {
			return err
		}
		begin := time.Now()
		for range scrapesAtOnce {
			if err := get(ctx, client, url); err != nil {
				return err
			}
		}
		took := time.Since(begin)
		after, err := cpuTime(c.Process.Pid)
		if err != nil {
			return err
		}
		w.note(step, took/scrapesAtOnce, (after-used)/scrapesAtOnce)
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("scraping: %w", err)
	}
	req.Header.Set("Accept", prometheusAccepts)
	answer, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("scraping: %w", err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return fmt.Errorf("scraping: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("scraping: %s", answer.Status)
	}
	return nil
}

// cpuTime returns the CPU time that the threads of a process have used. It is
// precise, while /proc counts hundredths of a second: see
// clock_getcpuclockid(3).
func cpuTime(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &t); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
