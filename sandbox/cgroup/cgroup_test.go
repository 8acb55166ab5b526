package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// tree writes files, or links where the content begins with "-> ".
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list returns what is in dir, directories without a word on what they hold.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			found[rel] = "-> " + target
			return err
		}
		data, err := os.ReadFile(name)
		found[rel] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCgroupHierarchies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mountinfo string
		want      map[string]string
	}{
		"version 1": {
			mountinfo: `25 31 0:22 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
26 31 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 31 0:24 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 31 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
			want: map[string]string{
				"memory": "/sys/fs/cgroup/memory", "cpu": "/sys/fs/cgroup/cpu,cpuacct",
				"cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "pids": "/sys/fs/cgroup/pids", "unified": "/sys/fs/cgroup/unified",
			},
		},
		"version 2": {
			mountinfo: "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			want:      map[string]string{"unified": "/sys/fs/cgroup"},
		},
		"nothing": {mountinfo: "21 1 8:1 / / rw - ext4 /dev/sda1 rw\nbroken\n - \n", want: map[string]string{}},
	} {
		got, err := parseMounts(strings.NewReader(c.mountinfo))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for self, want := range map[string]string{
		"0::/user.slice/x.scope\n":       "/user.slice/x.scope",
		"3:cpu:/a\n2:memory:/b\n0::/c\n": "/c",
		"3:cpu:/a\n":                     "/",
		"":                               "/",
		"1:name=systemd:/odd:name\n0::/with:co\n": "/with:co",
	} {
		if got := ownGroup(self); got != want {
			t.Errorf("%q: %q, want %q", self, got, want)
		}
	}
}

// Version 2, in a directory that stands in for its file system.
func TestVersion2(t *testing.T) {
	t.Parallel()
	pid := fmt.Sprint(os.Getpid())
	limits := sandbox.Limits{MemoryBytes: 100 << 20, CPUs: 1.5}
	all := "cpuset cpu io memory pids\n"
	for name, c := range map[string]struct {
		own    string
		files  map[string]string
		parent string // of the boxes' groups
		moved  bool   // whether we step down
		on     string // what the kernel passes on to the boxes' groups
		held   Held
	}{
		"handed to us": {
			own: "/system.slice/bailey.service",
			files: map[string]string{
				"system.slice/bailey.service/cgroup.procs":           pid + "\n",
				"system.slice/bailey.service/cgroup.controllers":     all,
				"system.slice/bailey.service/cgroup.subtree_control": "\n",
			},
			parent: "system.slice/bailey.service", moved: true,
			on: "memory cpu pids", held: Held{Memory: true, CPU: true, Processes: true, Freeze: true},
		},
		"handed to us, again": {
			own: "/system.slice/bailey.service/bailey-worker",
			files: map[string]string{
				"system.slice/bailey.service/cgroup.subtree_control": "cpu memory pids\n",
			},
			parent: "system.slice/bailey.service",
			on:     "memory cpu pids", held: Held{Memory: true, CPU: true, Processes: true, Freeze: true},
		},
		"handed to an ordinary user, in part": {
			own: "/user.slice/user-1.slice/user@1.service/app.slice/bailey.service",
			files: map[string]string{
				"user.slice/user-1.slice/user@1.service/app.slice/bailey.service/cgroup.procs":           pid + "\n",
				"user.slice/user-1.slice/user@1.service/app.slice/bailey.service/cgroup.controllers":     "memory pids\n",
				"user.slice/user-1.slice/user@1.service/app.slice/bailey.service/cgroup.subtree_control": "memory\n",
			},
			parent: "user.slice/user-1.slice/user@1.service/app.slice/bailey.service", moved: true,
			on: "memory pids", held: Held{Memory: true, Processes: true, Freeze: true},
		},
		"shared with others": {
			own: "/user.slice",
			files: map[string]string{
				"user.slice/cgroup.procs": pid + "\n1\n",
				"cgroup.controllers":      all,
				"cgroup.subtree_control":  all,
			},
			parent: ".",
			on:     "memory cpu pids", held: Held{Memory: true, CPU: true, Processes: true, Freeze: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			tree(t, root, c.files)
			parent := filepath.Join(root, c.parent)
			// The kernel makes the files of a new group, and answers in its own words.
			tree(t, parent, map[string]string{"bailey-test/cgroup.controllers": c.on, "bailey-test/cgroup.subtree_control": c.on})
			groups, err := newGroups(map[string]string{unified: root}, c.own, "bailey-test")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.held, groups.Held()); diff != "" {
				t.Error(diff)
			}
			g, err := groups.Make("box-1", limits)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(parent, "bailey-test/box-1")
			if diff := cmp.Diff(map[string]string{unified: dir}, g.dirs); diff != "" {
				t.Error(diff)
			}
			if err := g.LimitProcesses(77); err != nil {
				t.Error(err)
			}
			want := map[string]string{
				"memory.max": "104857600", "memory.oom.group": "1", "pids.max": "77",
			}
			if c.held.CPU {
				want["cpu.max"] = "150000 100000"
			}
			if diff := cmp.Diff(want, list(t, dir)); diff != "" {
				t.Error(diff)
			}
			if err := g.SpareOthers(); err != nil || list(t, dir)["memory.oom.group"] != "0" {
				t.Errorf("others are not spared: %v", err)
			}
			if moved := list(t, parent)[workerGroup+"/cgroup.procs"] == pid; moved != c.moved {
				t.Errorf("stepped down: %t", moved)
			}

			if g.Killed() {
				t.Error("killed already")
			}
			tree(t, dir, map[string]string{
				"memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 1\n", "memory.current": "4096\n",
				"cpu.stat": "usage_usec 2500\nuser_usec 1\n", "pids.current": "3\n", "pids.events": "max 7\n",
			})
			if diff := cmp.Diff(sandbox.LimitHits{Memory: 1, Processes: 7}, g.LimitHits()); diff != "" {
				t.Error(diff)
			}
			if !g.Killed() {
				t.Error("the kill is not seen")
			}
			if diff := cmp.Diff(sandbox.Stats{MemoryBytes: 4096, CPUTime: 2500 * time.Microsecond, Processes: 3}, g.Stats()); diff != "" {
				t.Error(diff)
			}

			tree(t, dir, map[string]string{"cgroup.events": "populated 1\nfrozen 1\n", "cgroup.procs": ""})
			if err := g.Freeze(t.Context()); err != nil || list(t, dir)["cgroup.freeze"] != "1" {
				t.Errorf("freeze: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if err := g.Thaw(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("thaw what does not: %v", err)
			}
			if err := g.Kill(t.Context()); err != nil {
				t.Errorf("kill nothing: %v", err)
			}
		})
	}
}

// What is there of version 1 is used, and what is not is said.
func TestVersion1InPart(t *testing.T) {
	t.Parallel()
	hierarchies := map[string]string{cpu: t.TempDir(), pids: t.TempDir(), memory: "/proc/no/such", freezer: "/proc/no/such"}
	groups, err := newGroups(hierarchies, "/", "bailey-test")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Held{CPU: true, Processes: true}, groups.Held()); diff != "" {
		t.Error(diff)
	}
	g, err := groups.Make("box-1", sandbox.Limits{MemoryBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range hierarchies {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if diff := cmp.Diff(map[string]string{}, list(t, dir)); diff != "" {
			t.Errorf("limits that nobody asked for: %s", diff)
		}
	}
	for name, err := range map[string]error{"freeze": g.Freeze(t.Context()), "thaw": g.Thaw(t.Context())} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g.Killed() || g.Stats() != (sandbox.Stats{}) {
		t.Errorf("killed %t, %+v", g.Killed(), g.Stats())
	}
	delete(g.dirs, pids)
	g.held.Processes = false
	if err := g.LimitProcesses(1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("limit processes: %v", err)
	}
	if err := groups.Remove(g); err != nil {
		t.Error(err)
	}
}

func TestNoGroupsWhereNoneCanBeMade(t *testing.T) {
	t.Parallel()
	for name, hierarchies := range map[string]map[string]string{
		"none mounted":   {},
		"no controllers": {unified: t.TempDir()},
		"not to be made": {memory: "/proc/no/such", cpu: "/proc/no/such"},
	} {
		if c, err := newGroups(hierarchies, "/", "bailey-test"); err == nil || c != nil {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

// real makes a group with the host's own control groups, whichever version they are.
func real(t testing.TB, limits sandbox.Limits) (*Groups, *Group) {
	t.Helper()
	groups, err := FindSome(fmt.Sprintf("bailey-test-%d-%d", os.Getpid(), made.Add(1)))
	if err != nil {
		t.Skip("there are no control groups that we may use:", err)
	}
	t.Logf("%+v", groups.Held())
	g, err := groups.Make("box", limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if err := groups.Remove(g); err != nil {
			t.Error(err)
		}
		for _, dir := range groups.dirs {
			if _, err := os.Lstat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	})
	return groups, g
}

var made atomic.Int64

// run starts a shell command in the group and returns it and what it prints.
func run(t testing.TB, g *Group, command string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", command)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever, should it not come back from the group
		done <- func() error {
			dir, err := g.Open()
			if err != nil {
				return err
			}
			if dir != nil {
				defer dir.Close()
				cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
			}
			if err := g.Enter(); err != nil {
				return err
			}
			return errors.Join(cmd.Start(), g.Leave())
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // killed
	})
	return cmd, bufio.NewReader(out)
}

func line(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	s, err := r.ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(s)
}

func TestFreezeStopsAndThawGoesOn(t *testing.T) {
	t.Parallel()
	groups, g := real(t, sandbox.Limits{})
	if !groups.Held().Freeze {
		t.Skip("there is no freezer")
	}
	_, out := run(t, g, "i=0; while :; do i=$((i+1)); echo $i; done")
	line(t, out)
	for range 3 {
		if err := errors.Join(g.Freeze(t.Context()), g.Freeze(t.Context())); err != nil {
			t.Fatal(err)
		}
		before := g.Stats().CPUTime
		time.Sleep(20 * time.Millisecond) // in which it would run, were it not frozen
		if after := g.Stats().CPUTime; after != before {
			t.Errorf("frozen, it took %v", after-before)
		}
		if err := errors.Join(g.Thaw(t.Context()), g.Thaw(t.Context())); err != nil {
			t.Fatal(err)
		}
		for range 10_000 { // more than a pipe holds
			line(t, out)
		}
	}
}

func TestKillKillsEverything(t *testing.T) {
	t.Parallel()
	for _, frozen := range []bool{false, true} {
		t.Run(fmt.Sprintf("frozen=%t", frozen), func(t *testing.T) {
			t.Parallel()
			groups, g := real(t, sandbox.Limits{})
			if groups.Held().Processes {
				if err := g.LimitProcesses(60); err != nil {
					t.Fatal(err)
				}
			}
			// What is in another session, and what is born while it is killed.
			_, out := run(t, g, "setsid sleep 1000 & (trap '' TERM INT; sleep 1000 &); echo; while :; do sleep 1000 2>/dev/null & done 2>/dev/null")
			line(t, out)
			if frozen {
				if !groups.Held().Freeze {
					t.Skip("there is no freezer")
				}
				if err := g.Freeze(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := g.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if list, err := g.processes(); err != nil || len(list) > 0 {
				t.Errorf("left: %v, %v", list, err)
			}
		})
	}
}

// What has a number that was in the group, or is no number of one process at all, is
// somebody else's.
func TestKillSparesWhatIsNotInTheGroup(t *testing.T) {
	t.Parallel()
	other := exec.CommandContext(t.Context(), "/bin/sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- other.Wait() }()
	root := t.TempDir()
	tree(t, root, map[string]string{"cgroup.procs": "0\n"})
	g := &Group{dirs: map[string]string{pids: root}}
	if err := g.killListed([]int{0, -1, -other.Process.Pid, other.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(t.Context()); err != nil { // of one process that it cannot see
		t.Fatal(err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("a process that was not in the group has ended: %v", err)
	default:
	}
	// And it is killed once it is in it.
	tree(t, root, map[string]string{"cgroup.procs": fmt.Sprintf("0\n%d\n", other.Process.Pid)})
	if err := g.killListed([]int{other.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || other.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%v", err)
	}
}

func TestLimitsHold(t *testing.T) {
	t.Parallel()
	t.Run("processes", func(t *testing.T) {
		t.Parallel()
		groups, g := real(t, sandbox.Limits{})
		if !groups.Held().Processes {
			t.Skip("the limit is not held here")
		}
		if err := g.LimitProcesses(20); err != nil {
			t.Fatal(err)
		}
		run(t, g, "for i in $(seq 100); do sleep 1000 & done 2>/dev/null; read x")
		// The shell may end at the first process that it is refused, and then there are 20
		// for a moment only. That one was refused is on the books for good.
		for deadline := time.Now().Add(time.Minute); g.LimitHits().Processes == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("none was refused: %+v", g.Stats())
			}
		}
		if n := g.Stats().Processes; n < 19 || n > 20 {
			t.Errorf("%d processes", n)
		}
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		groups, g := real(t, sandbox.Limits{MemoryBytes: 32 << 20})
		if !groups.Held().Memory {
			t.Skip("the limit is not held here")
		}
		cmd, _ := run(t, g, "head -c 200m /dev/zero | tail >/dev/null")
		_ = cmd.Wait() // however it ends
		if g.Kills() < 1 {
			t.Error("nothing was killed")
		}
	})
	t.Run("CPU time", func(t *testing.T) {
		t.Parallel()
		groups, g := real(t, sandbox.Limits{CPUs: 0.2})
		if !groups.Held().CPU {
			t.Skip("the limit is not held here")
		}
		_, out := run(t, g, "echo; while :; do :; done")
		line(t, out)
		begun, before := time.Now(), g.Stats().CPUTime
		time.Sleep(time.Second)
		used, took := g.Stats().CPUTime-before, time.Since(begun)
		if used == 0 && groups.dirs[unified] == "" && groups.dirs[cpuacct] == "" {
			t.Skip("nobody counts")
		}
		if share := used.Seconds() / took.Seconds(); share > 0.35 || used == 0 {
			t.Errorf("it took %.2f of a CPU (%v)", share, used)
		}
	})
}

func TestSweepKillsWhatWasLeft(t *testing.T) {
	t.Parallel()
	groups, g := real(t, sandbox.Limits{})
	_, out := run(t, g, "sleep 1000 & echo; wait")
	line(t, out)
	if err := groups.Sweep(func(string) bool { return true }); err != nil {
		t.Error(err)
	}
	if list, err := g.processes(); err != nil || len(list) < 2 {
		t.Errorf("a live box has the processes %v, %v", list, err)
	}
	if err := groups.Sweep(func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	for _, dir := range g.dirs {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// What fifty boxes of a killed worker leave, frozen as those that wait are.
func BenchmarkSweepOfFifty(b *testing.B) {
	groups, _ := real(b, sandbox.Limits{})
	for b.Loop() {
		b.StopTimer()
		for i := range 50 {
			g, err := groups.Make(fmt.Sprint("left-", i), sandbox.Limits{})
			if err != nil {
				b.Fatal(err)
			}
			_, out := run(b, g, "sleep 1000 & echo; wait")
			line(b, out)
			if g.held.Freeze {
				if err := g.Freeze(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.StartTimer()
		if err := groups.Sweep(func(id string) bool { return id == "box" }); err != nil {
			b.Fatal(err)
		}
	}
}

// After a pause, as boxes are started by hand: who moves a thread by its number waits for
// all that the kernel's readers of the moment do, 6 ms here.
func BenchmarkEnter(b *testing.B) {
	_, g := real(b, sandbox.Limits{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var took []time.Duration
	for b.Loop() {
		time.Sleep(20 * time.Millisecond)
		begun := time.Now()
		if err := errors.Join(g.Enter(), g.Leave()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds())/1000, "min-ms")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}

func TestConfine(t *testing.T) {
	t.Parallel()
	for cpus, want := range map[float64]int{0.5: 1, 1: 1, 1000: runtime.NumCPU()} {
		done := make(chan int)
		go func() {
			runtime.LockOSThread() // for ever: the thread ends here
			var set unix.CPUSet
			if err := errors.Join(Confine(cpus), unix.SchedGetaffinity(0, &set)); err != nil {
				t.Error(err)
			}
			done <- set.Count()
		}()
		if got := <-done; got != want {
			t.Errorf("%g: %d CPUs, want %d", cpus, got, want)
		}
	}
}
