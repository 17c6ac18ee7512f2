package ctl

import "os"

// hooks are what tests and labs ask of the real binary, which they can only do by its
// environment. These are all variables that this package reads.
type hooks struct {
	refuse string // FASTBR_REFUSE_NETNS: path of the network namespace that Open refuses to work in
	cgroup string // FASTBR_CGROUP: path of the cgroup that stands for the whole host's processes
	// FASTBR_PROBE_MISSING: kernel features, by name, that are called missing, or
	// "force_forwarding", the sysctl of Linux 6.17
	missing string
	killAt  string // FASTBR_KILL_AT: the step after which the process kills itself
	trace   bool   // FASTBR_TRACE_STEPS=1: each step is printed to stderr
}

func currentHooks() hooks {
	return hooks{
		refuse:  os.Getenv("FASTBR_REFUSE_NETNS"),
		cgroup:  os.Getenv("FASTBR_CGROUP"),
		missing: os.Getenv("FASTBR_PROBE_MISSING"),
		killAt:  os.Getenv("FASTBR_KILL_AT"),
		trace:   os.Getenv("FASTBR_TRACE_STEPS") == "1",
	}
}
