package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fastbr/fastbr/internal/testutil"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fastbr": main})
}

// own returns this test binary under the program's name. Under that name it is fastbr.
func own(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("fastbr")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// program returns the fastbr that `make test` has built, otherwise own. Under the race
// detector own takes several times as long for each command.
func program(t *testing.T) string {
	t.Helper()
	built := os.Getenv("FASTBR_TEST_BINARY")
	if built == "" {
		return own(t)
	}
	path := filepath.Join(t.TempDir(), "fastbr")
	if err := os.Symlink(built, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestScripts runs testdata/script, each file in a namespace of its own, on the
// real datapath. Those named run-* run own: `fastbr run` does several things at once.
//
//	fb ARG...         fastbr must succeed
//	bad CODE ARG...   fastbr must exit with CODE, say one line, and leave nothing
//	nobody CODE ARG…  the same as another user than root
//	host CMD ARG...   a command in the host's namespace must succeed
//	peer CMD ARG...   a command in a second namespace, $PEER, must succeed
func TestScripts(t *testing.T) {
	testutil.RequireRoot(t)
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scriptHost{program: program(t), host: testutil.NewNetns(t), peer: testutil.NewNetns(t), bpffs: testutil.BPFFS(t), state: t.TempDir(), cgroup: testutil.Cgroup(t)}
			if strings.HasPrefix(name, "run-") {
				s.program = own(t)
			}
			t.Cleanup(func() { s.downAll(t) }) // scripts run in parallel: not before they end
			testscript.Run(t, testscript.Params{
				Files: []string{file},
				Setup: s.setup,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"fb": s.fb, "bad": s.bad, "nobody": s.nobody, "host": s.inside(s.host), "peer": s.inside(s.peer),
				},
			})
		})
	}
}

// scriptHost holds the namespaces and directories of a script.
type scriptHost struct {
	program              string // called fastbr
	host, peer           *testutil.Netns
	bpffs, state, cgroup string
}

func (s *scriptHost) setup(env *testscript.Env) error {
	env.Setenv("PATH", filepath.Dir(s.program)+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("PEER", s.peer.Path())
	env.Setenv("HOST", s.host.Path())
	env.Setenv("BPFFS", s.bpffs)
	env.Setenv("STATE", s.state)
	env.Setenv("FASTBR_CGROUP", s.cgroup)
	env.Setenv("FASTBR_REFUSE_NETNS", fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
	return nil
}

func (s *scriptHost) args(args []string) []string {
	return append([]string{"--netns", s.host.Path(), "--bpffs", s.bpffs, "--state-dir", s.state}, args...)
}

func (s *scriptHost) fb(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("use bad CODE")
	}
	ts.Check(ts.Exec("fastbr", s.args(args)...))
}

func (s *scriptHost) bad(ts *testscript.TestScript, _ bool, args []string) {
	before := s.traces()
	err := ts.Exec("fastbr", s.args(args[1:])...)
	assertRefusal(ts, args[0], err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	if after := s.traces(); after != before {
		ts.Fatalf("left behind; before:\n%s\nafter:\n%s", before, after)
	}
}

// assertRefusal checks the exit code, and that stderr is one line.
func assertRefusal(ts *testscript.TestScript, code string, err error, stdout, stderr string) {
	want, convErr := strconv.Atoi(code)
	ts.Check(convErr)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("ended with %v, want exit code %d", err, want)
	}
	if stdout != "" {
		ts.Fatalf("printed data: %q", stdout)
	}
	if !strings.HasPrefix(stderr, "fastbr: ") || strings.Count(stderr, "\n") != 1 {
		ts.Fatalf("want one line from fastbr, got %q", stderr)
	}
}

func (s *scriptHost) nobody(ts *testscript.TestScript, _ bool, args []string) {
	// The test's own directory is root's, so everybody gets a copy to run. Another
	// process writes it: a child started meanwhile by this one would inherit a
	// descriptor open for writing, and such a file cannot be run.
	dir, err := os.MkdirTemp("/tmp", "fastbr-nobody-")
	ts.Check(err)
	defer os.RemoveAll(dir)
	ts.Check(os.Chmod(dir, 0o755))
	runnable := filepath.Join(dir, "fastbr")
	ts.Check(exec.Command("cp", s.program, runnable).Run())
	ts.Check(os.Chmod(runnable, 0o755))
	cmd := exec.Command(runnable, args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	assertRefusal(ts, args[0], err, stdout.String(), stderr.String())
}

func (s *scriptHost) inside(n *testutil.Netns) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(ts.Exec("nsenter", append([]string{"--net=" + n.Path()}, args...)...))
	}
}

// traces returns what a refused command must not change. It leaves out IPv6 routes:
// the kernel adds link-local ones with a delay.
func (s *scriptHost) traces() string {
	cmd := exec.Command("nsenter", "--net="+s.host.Path(), "sh", "-c",
		"ip -o link | cut -d' ' -f2; ip -4 route show table all | sed 's/ linkdown//'; nft list ruleset; sysctl net.ipv4.ip_forward net.ipv4.ip_local_reserved_ports")
	out, _ := cmd.Output() // not stderr, where ip complains of a peer's namespace that is just going
	var files []string
	for _, root := range []string{s.state, s.bpffs} {
		_ = filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				files = append(files, path)
			}
			return nil
		})
	}
	return string(out) + strings.Join(files, "\n")
}

func (s *scriptHost) downAll(t *testing.T) {
	t.Helper()
	if out, err := exec.Command(s.program, s.args([]string{"down", "--all"})...).CombinedOutput(); err != nil {
		t.Errorf("down --all: %v: %s", err, out)
	}
}
