package metrics

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// showProcess writes the figures of the serving process, under the names that
// Prometheus' own libraries give them. What cannot be read is left out.
func showProcess(e *exposition, started time.Time) {
	show := func(name string, kind Kind, help string, value float64, err error) {
		if err == nil {
			e.family(Metric{Name: name, Kind: kind, Help: help})
			e.float(value)
		}
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	show("go_goroutines", gauge, "Goroutines that exist.", float64(runtime.NumGoroutine()), nil)
	show("go_memstats_heap_inuse_bytes", gauge, "Bytes of heap in use.", float64(memory.HeapInuse), nil)
	cpu, err := cpuSeconds()
	show("process_cpu_seconds_total", counter, "User and system CPU time, in seconds.", cpu, err)
	var files unix.Rlimit
	err = unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	show("process_max_fds", gauge, "File descriptors that may be open.", float64(files.Cur), err)
	open, err := os.ReadDir("/proc/self/fd")
	show("process_open_fds", gauge, "Open file descriptors.", float64(len(open)), err)
	virtual, resident, err := memoryBytes()
	show("process_resident_memory_bytes", gauge, "Resident memory, in bytes.", resident, err)
	show("process_virtual_memory_bytes", gauge, "Virtual memory, in bytes.", virtual, err)
	show("process_start_time_seconds", gauge, "When the process started, in seconds since 1970.", float64(started.UnixMilli())/1000, nil)
}

func cpuSeconds() (float64, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds(), nil
}

// memoryBytes reads /proc/self/statm (proc_pid_statm(5)), which counts pages.
func memoryBytes() (virtual, resident float64, err error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &virtual, &resident)
	}
	page := float64(os.Getpagesize())
	return virtual * page, resident * page, err
}
