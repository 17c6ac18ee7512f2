package datapath

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// kernelHZ returns jiffies per second: from the kernel's configuration if it is
// available, otherwise measured. (With a __kconfig extern, loading would fail
// where it is not.)
func kernelHZ() (uint32, error) {
	if hz := configHZ("/proc/config.gz"); hz != 0 {
		return hz, nil
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		if hz := configHZ("/boot/config-" + unix.ByteSliceToString(uts.Release[:])); hz != 0 {
			return hz, nil
		}
	}
	return measureHZ(400 * time.Millisecond)
}

// configHZ reads CONFIG_HZ from a kernel configuration, compressed or not. It
// returns 0 if there is none.
func configHZ(path string) uint32 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(f)
		if err != nil {
			return 0
		}
		defer z.Close()
		r = z
	}
	return parseHZ(r)
}

func parseHZ(r io.Reader) uint32 {
	for s := bufio.NewScanner(r); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "CONFIG_HZ="); ok {
			hz, err := strconv.ParseUint(v, 10, 32)
			if err == nil {
				return uint32(hz)
			}
		}
	}
	return 0
}

// measureHZ counts the jiffies in a while and rounds the rate to a value that
// kernels are built with.
func measureHZ(while time.Duration) (uint32, error) {
	p, err := loadControl()
	if err != nil {
		return 0, err
	}
	defer p.Close()
	read := func() (uint64, time.Time, error) {
		j, err := request(p, tcFbrRequest{Op: tcFbrOpFBR_OP_NOW})
		return j, time.Now(), err
	}
	j0, t0, err := read()
	if err != nil {
		return 0, err
	}
	time.Sleep(while)
	j1, t1, err := read()
	if err != nil {
		return 0, err
	}
	return roundHZ(float64(j1-j0) / t1.Sub(t0).Seconds())
}

func roundHZ(measured float64) (uint32, error) {
	for _, hz := range []uint32{100, 250, 300, 1000} {
		if measured > 0.93*float64(hz) && measured < 1.07*float64(hz) {
			return hz, nil
		}
	}
	return 0, fmt.Errorf("cannot tell the kernel's HZ: measured %.1f jiffies per second", measured)
}

// loadControl loads only fbr_control.
func loadControl() (*ebpf.Program, error) {
	spec, err := objectFile()
	if err != nil {
		return nil, fmt.Errorf("reading the embedded programs: %w", err)
	}
	resize(spec, tcFbrMeta{FlowsMax: 1})
	spec.Maps[tcMapFbrNport].MaxEntries = 1 // no request here needs a port
	var objs struct {
		Control *ebpf.Program `ebpf:"fbr_control"`
	}
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Cache: kernelTypes}); err != nil {
		return nil, fmt.Errorf("loading fbr_control: %w", err)
	}
	return objs.Control, nil
}

// fibSource reports whether bpf_fib_lookup knows BPF_FIB_LOOKUP_SRC (6.7).
var fibSource = sync.OnceValues(func() (bool, error) {
	p, err := loadControl()
	if err != nil {
		return false, err
	}
	defer p.Close()
	ret, err := request(p, tcFbrRequest{Op: tcFbrOpFBR_OP_FIB})
	if err != nil {
		return false, err
	}
	return !errors.Is(unix.Errno(-int64(ret)), unix.EINVAL), nil
})
