package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

// Probe tests on the running kernel what the datapath needs. It attaches
// nothing.
func Probe() []Feature {
	all := []Feature{
		{Name: "btf", Required: true, Minimum: "5.4 with CONFIG_DEBUG_INFO_BTF", Err: probeBTF()},
		{Name: "jit", Required: true, Minimum: "any with CONFIG_BPF_JIT and net.core.bpf_jit_enable=1", Err: probeJIT()},
		{Name: "tcx", Required: true, Minimum: "6.6", Err: probeTCX()},
		{Name: "netfilter-link", Required: true, Minimum: "6.6 with CONFIG_NETFILTER_BPF_LINK", Err: features.HaveProgramType(ebpf.Netfilter)},
		{Name: "cgroup-sockets", Required: true, Minimum: "5.18 with CONFIG_CGROUP_BPF", Err: features.HaveProgramType(ebpf.CGroupSockAddr)},
		{Name: "socket-iterators", Required: true, Minimum: "6.5 with CONFIG_BPF_EVENTS", Err: probeIterators()},
		{Name: "redirect-peer", Required: true, Minimum: "5.10", Err: features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{Name: "timer", Required: true, Minimum: "5.15", Err: features.HaveProgramHelper(ebpf.SchedCLS, asm.FnTimerInit)},
		{Name: "loop", Required: true, Minimum: "5.17", Err: features.HaveProgramHelper(ebpf.SchedCLS, asm.FnLoop)},
		{Name: "fib-source", Minimum: "6.7", Err: probeFIB()},
		{Name: "conntrack-timeout", Minimum: "6.0 with conntrack's BTF", Err: probeConntrack()},
		{Name: "conntrack-nat", Minimum: "6.1 with nf_nat's BTF", Err: probeNAT()},
	}
	for i := range all {
		if errors.Is(all[i].Err, ebpf.ErrNotSupported) {
			all[i].Err = fmt.Errorf("%w: %w", ErrNotSupported, all[i].Err)
		}
	}
	return all
}

func probeBTF() error {
	if _, err := kernelTypes.Kernel(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return nil
}

// probeJIT loads a program and checks that it has machine code. The sysctl
// would be simpler, but only the first network namespace shows it.
func probeJIT() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("loading a program: %w", err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return fmt.Errorf("reading a program: %w", err)
	}
	if n, err := info.JitedSize(); err != nil || n == 0 {
		return fmt.Errorf("programs are interpreted: %w", ErrNotSupported)
	}
	return nil
}

// probeTCX queries the programs on the loopback device. Kernels without tcx do
// not know the query.
func probeTCX() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return err
}

func probeFIB() error {
	ok, err := fibSource()
	if err == nil && !ok {
		err = ErrNotSupported
	}
	return err
}

// probeIterators loads an iterator over TCP sockets that can end one.
func probeIterators() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "tcp", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("loading an iterator: %w: %w", ErrNotSupported, err)
	}
	return errors.Join(p.Close(), probeKfunc("bpf_sock_destroy", ""))
}

// probeConntrack looks for conntrack's kfuncs. bpf_ct_change_timeout is the
// newest one that fastbr uses.
func probeConntrack() error {
	return probeKfunc("bpf_ct_change_timeout", "nf_conntrack")
}

// probeNAT looks for nf_nat's kfunc.
func probeNAT() error { return probeKfunc("bpf_ct_set_nat_info", "nf_nat") }

// probeKfunc looks for a kfunc in the kernel and in the module that may contain
// it.
func probeKfunc(name, module string) error {
	spec, err := kernelTypes.Kernel()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	var f *btf.Func
	err = spec.TypeByName(name, &f)
	if err == nil {
		return nil
	}
	if module != "" {
		if spec, err = kernelTypes.Module(module); err == nil {
			err = spec.TypeByName(name, &f)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return nil
}
