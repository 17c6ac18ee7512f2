package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/fastbr/fastbr/internal/lab"
)

// live makes the kernel generate frames, which an XDP program fills in, and
// receive them on lo of a namespace.
type live struct {
	from *lab.Namespace
	prog *ebpf.Program
	size int // bytes per frame
}

const (
	liveFrames = 2  // BPF_F_TEST_XDP_LIVE_FRAMES, include/uapi/linux/bpf.h
	liveBatch  = 64 // frames that the kernel makes at a time: TEST_XDP_MAX_BATCH there
	loopback   = 1  // ifindex of lo in every namespace
)

// xdpContext is struct xdp_md, include/uapi/linux/bpf.h.
type xdpContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RXQueueIndex, EgressIfindex uint32
}

// send makes at least so many frames on one CPU. When it returns, the kernel
// has forwarded or dropped all but the last few.
func (l live) send(frames int) error {
	return l.from.Do(func() error {
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return fmt.Errorf("reading the thread's CPUs: %w", err)
		}
		one.Set(lastCPU(before))
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("pinning the generator: %w", err)
		}
		return errors.Join(l.run(frames), unix.SchedSetaffinity(0, &before))
	})
}

func (l live) run(frames int) error {
	_, err := l.prog.Run(&ebpf.RunOptions{
		Data:    make([]byte, l.size),
		Context: xdpContext{DataEnd: uint32(l.size), IngressIfindex: loopback},
		Repeat:  uint32(frames),
		Flags:   liveFrames,
	})
	if err != nil {
		return fmt.Errorf("running the generator: %w", err)
	}
	return nil
}

// lastCPU returns the last CPU: interrupts tend to use the first.
func lastCPU(set unix.CPUSet) int {
	last := 0
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			last = i
		}
	}
	return last
}

// pace makes perSecond frames a second on any CPU, until there are n of them or
// ctx is done. It returns the number of frames. It catches up on time that it
// lost to other work on the machine. Starting and ending a run costs the kernel
// some milliseconds, so the traffic comes in bursts.
func (l live) pace(ctx context.Context, n, perSecond int) (sent int, err error) {
	const atMost = 64 * liveBatch
	err = l.from.Do(func() error {
		for begin := time.Now(); sent < n && ctx.Err() == nil; {
			due := min(n, int(time.Since(begin).Seconds()*float64(perSecond))) - sent
			if due <= 0 {
				time.Sleep(time.Millisecond)
				continue
			}
			if due > liveBatch { // the kernel makes whole batches
				due = min(due/liveBatch*liveBatch, atMost)
			}
			if err := l.run(due); err != nil {
				return err
			}
			sent += due
		}
		return nil
	})
	return sent, err
}

// attachTCX attaches a program at the head of a device's ingress.
func attachTCX(n *lab.Namespace, ifindex int, prog *ebpf.Program) (l link.Link, err error) {
	err = n.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog,
			Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attaching %s in %s: %w", prog, n.Name, err)
	}
	return l, nil
}
