package sandboxtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

// gone checks that nothing of a box that has ended is on the host, by the box's id,
// which is in the names of all that is made for it.
func gone(t *testing.T, id string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if left = remains(t, id); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left of box %s: %s", id, strings.Join(left, "; "))
			return
		}
	}
}

// group begins what remains lists of control groups.
const group = "control group "

// remains lists what there is of a box: mounts in our namespace, processes, and control
// groups.
func remains(t *testing.T, id string) []string {
	t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if named(line, id) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, file := range []string{"cmdline", "cgroup"} {
		names, err := filepath.Glob("/proc/[0-9]*/" + file)
		if err != nil {
			t.Error(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err == nil && named(string(bytes.ReplaceAll(data, []byte{0}, []byte{' '})), id) {
				left = append(left, fmt.Sprintf("process %s: %.200q", name, data))
			}
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && named(entry.Name(), id) {
			left = append(left, group+name)
		}
		return nil // what came and went is not ours
	})
	if err != nil {
		t.Error(err)
	}
	return left
}

// named reports whether a text has the id of a box, and not of one whose id begins so.
func named(text, id string) bool {
	for {
		_, after, ok := strings.Cut(text, id)
		if !ok {
			return false
		}
		if after == "" || after[0] < '0' || after[0] > '9' {
			return true
		}
		text = after
	}
}

// namespaces returns the namespaces that the threads of this process are in.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	links, err := filepath.Glob("/proc/self/task/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if strings.HasSuffix(link, "_for_children") {
			continue
		}
		if target, err := os.Readlink(link); err == nil { // the thread may have ended
			found[target] = true
		}
	}
	return found
}

// comesHome checks that no thread of this process is left in a namespace of a box.
func comesHome(t *testing.T, before map[string]bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var away []string
		for namespace := range namespaces(t) {
			if !before[namespace] {
				away = append(away, namespace)
			}
		}
		if len(away) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("threads of the worker are left in %q", away)
			return
		}
	}
}

// workerVar has [Run] be a worker that is killed, instead of testing anything.
const workerVar = "SANDBOXTEST_WORKER"

// work has a box, says its id, and lives until it is killed.
func (s suite) work(t *testing.T) {
	spec := s.spec(t)
	box, err := s.driver.Start(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tool.Dial(context.Background(), stdin(box), stdout(box))
	if err != nil {
		t.Fatal(err)
	}
	bash(t, client, "setsid sleep 1000 & (trap '' TERM INT HUP; nohup sleep 1000 >/dev/null 2>&1 &)")
	fmt.Printf("\nhas box %s\n", spec.ID)
	select {}
}

// killedWorker kills a worker with a box, and sees the box die. The worker is this test
// program again.
func (s suite) killedWorker(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run="+s.pattern, "-test.v")
	cmd.Env = append(os.Environ(), workerVar+"=1", "TMPDIR="+t.TempDir())
	cmd.Stderr = testWriter{t}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // no error if that was done
		_ = cmd.Wait()         // killed
	}()
	var id string
	for lines := bufio.NewScanner(out); id == "" && lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "has box %s", &id); err != nil {
			t.Log("worker:", lines.Text())
		}
	}
	if id == "" {
		t.Fatal("the worker has no box")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var left []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// Empty control groups, and directories, are for the next worker to remove.
		if left = slices.DeleteFunc(remains(t, id), func(l string) bool { return strings.HasPrefix(l, group) }); len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("left of a killed worker's box: %s", strings.Join(left, "; "))
			return
		}
	}
	for _, l := range remains(t, id) {
		dir := strings.TrimPrefix(l, group)
		// A group is busy for a moment after the last process in it has died.
		err := os.Remove(dir)
		for deadline := time.Now().Add(30 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = os.Remove(dir) {
			time.Sleep(5 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		_ = os.Remove(filepath.Dir(dir)) // unless others are in it
	}
}

// leaks starts and ends boxes in every way, and looks for what is left each time.
func (s suite) leaks(t *testing.T) {
	open := descriptors(t)
	for range 3 {
		spec := s.spec(t)
		box, client := s.dial(t, spec)
		bash(t, client, "setsid sleep 1000 & echo x >~/x")
		client.Close()
		stop(t, box)
		gone(t, spec.ID)

		spec = s.spec(t)
		spec.Command = []string{"/bin/sh", "-c", "exit 0"}
		box = s.start(t, spec)
		wait(t, box)
		gone(t, spec.ID)

		spec = s.spec(t)
		spec.Command = []string{"/no/such/program"}
		if _, err := s.driver.Start(t.Context(), spec); err == nil {
			t.Error("started")
		}
		gone(t, spec.ID)
	}
	t.Logf("descriptors: %d before, %d after", open, descriptors(t))
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
