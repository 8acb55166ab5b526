package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// limited says why a limit is not tried: the backend does not say that it holds it.
// With no isolation at all it is tried all the same, as that must show.
func limited(name string) func(sandbox.Report) string {
	return func(r sandbox.Report) string {
		if held := r.Limits[name]; (held == "" || held == sandbox.NotHeld) && r.Isolation != sandbox.NoIsolation {
			return "the backend says that it does not hold this limit here"
		}
		return ""
	}
}

// Each probe goes over its limit by no more than it takes to see that it can, so that
// the host survives a box without one.
const (
	memoryLimit  = 128 << 20
	memoryTry    = 320 << 20
	processLimit = 64
	processTry   = 160
	diskLimit    = 32 << 20
	diskTry      = 96 << 20
	filesTry     = 300_000
	floodTry     = 64 << 20
)

var resourceChecks = []check{
	{
		id:      "resource/memory",
		tried:   fmt.Sprintf("use %d MiB of memory where %d are allowed", memoryTry>>20, memoryLimit>>20),
		applies: limited("memory"),
		spec:    func(s *sandbox.Spec) { s.Limits.MemoryBytes = memoryLimit; s.Limits.DiskBytes = 16 << 20 },
		lost:    sandbox.CauseMemory,
		probe: func(*prober) outcome {
			mem, err := unix.Mmap(-1, 0, memoryTry, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				return held("%v", err)
			}
			for i := 0; i < len(mem); i += 4096 {
				mem[i] = 1
			}
			// One that is only watched is given a moment to be seen.
			time.Sleep(2 * time.Second)
			return broken("all of it was had")
		},
	},
	{
		id:      "resource/processes",
		tried:   fmt.Sprintf("start %d processes where %d are allowed", processTry, processLimit),
		applies: limited("processes"),
		spec:    func(s *sandbox.Spec) { s.Limits.Processes = processLimit },
		probe: func(*prober) outcome {
			var started []*exec.Cmd
			defer func() {
				for _, cmd := range started {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				}
			}()
			for range processTry {
				cmd := exec.Command("/bin/sleep", "60")
				if err := cmd.Start(); errors.Is(err, fs.ErrNotExist) {
					return skipped("the image has no /bin/sleep to start")
				} else if err != nil {
					return held("the kernel said %q at process %d, and the box goes on", reason(err), len(started)+1)
				}
				started = append(started, cmd)
			}
			return broken("%d were started", len(started))
		},
	},
	{
		id:      "resource/disk",
		tried:   fmt.Sprintf("write %d MiB outside the work folder where %d are allowed", diskTry>>20, diskLimit>>20),
		applies: limited("disk"),
		spec:    func(s *sandbox.Spec) { s.Limits.DiskBytes = diskLimit },
		lost:    sandbox.CauseMemory,
		probe: func(*prober) outcome {
			chunk := make([]byte, 1<<20)
			for i := range chunk {
				chunk[i] = byte(i)
			}
			fill := func(dir string, most int) (wrote int, err error) {
				name := filepath.Join(dir, "bailey-verify-fill")
				f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
				if err != nil {
					return 0, err
				}
				for wrote < most && err == nil {
					var n int
					n, err = f.Write(chunk)
					wrote += n
				}
				return wrote, errors.Join(err, f.Close())
			}
			total, saw := 0, []string{}
			for _, dir := range []string{"/tmp", "/var/tmp", "/home/agent", "/run", "/", "/dev/shm"} {
				defer os.Remove(filepath.Join(dir, "bailey-verify-fill"))
				wrote, err := fill(dir, diskTry-total)
				if total += wrote; total >= diskTry {
					return broken("%d MiB were written", total>>20)
				}
				saw = append(saw, fmt.Sprintf("%s took %d MiB (%s)", dir, wrote>>20, reason(err)))
			}
			// It is memory, and bounded with it.
			wrote, err := fill("/dev", diskTry)
			os.Remove("/dev/bailey-verify-fill")
			if wrote >= diskTry {
				return broken("%d MiB were written to /dev", wrote>>20)
			}
			saw = append(saw, fmt.Sprintf("/dev took %d MiB (%s)", wrote>>20, reason(err)))
			return held("%s", strings.Join(saw, ", "))
		},
	},
	{
		id:      "resource/files",
		tried:   fmt.Sprintf("make %d empty files outside the work folder", filesTry),
		applies: limited("disk"),
		spec:    func(s *sandbox.Spec) { s.Limits.DiskBytes, s.Limits.MemoryBytes = diskLimit, 256<<20 },
		lost:    sandbox.CauseMemory,
		probe: func(*prober) outcome {
			dir, err := os.MkdirTemp("/tmp", "bailey-verify-")
			if err != nil {
				return held("not one: %v", err)
			}
			defer os.RemoveAll(dir)
			deadline := time.Now().Add(20 * time.Second)
			for n := range filesTry {
				fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, n), unix.O_CREAT|unix.O_WRONLY, 0o600)
				if err != nil {
					return held("%s after %d files", reason(err), n)
				}
				unix.Close(fd)
				if n%1000 == 0 && time.Now().After(deadline) {
					return held("%d files in 20 s, which is all a box can do", n)
				}
			}
			return broken("all were made")
		},
	},
	{
		id:      "resource/cpu",
		tried:   "compute on four threads for two seconds where one core is allowed",
		applies: limited("cpu"),
		spec:    func(s *sandbox.Spec) { s.Limits.CPUs = 1 },
		probe: func(*prober) outcome {
			const span = 2 * time.Second
			var before, after unix.Rusage
			_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
			runtime.GOMAXPROCS(4)
			var threads sync.WaitGroup
			began := time.Now()
			for range 4 {
				threads.Go(func() {
					for time.Since(began) < span {
					}
				})
			}
			threads.Wait()
			wall := time.Since(began)
			_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
			used := time.Duration(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano()) * time.Nanosecond
			return outcome{Status: Held, Saw: fmt.Sprintf("%.2f cores were had", used.Seconds()/wall.Seconds()),
				Values: map[string]string{"cores": fmt.Sprintf("%.3f", used.Seconds()/wall.Seconds())}}
		},
		judge: func(_ *host, out outcome) outcome {
			var cores float64
			if _, err := fmt.Sscan(out.Values["cores"], &cores); err != nil {
				return out
			}
			if runtime.NumCPU() < 2 {
				return skipped("this host has one core, so nothing can be seen")
			}
			if cores > 1.3 {
				out.Status = Broken
			}
			return out
		},
	},
	{
		id:    "resource/output",
		tried: fmt.Sprintf("write %d MiB to standard error, which the worker logs", floodTry>>20),
		spec:  func(*sandbox.Spec) {},
		probe: func(*prober) outcome {
			line := make([]byte, 64<<10)
			for i := range line {
				line[i] = 'x'
			}
			began := time.Now()
			for wrote := 0; wrote < floodTry; {
				n, err := os.Stderr.Write(line)
				wrote += n
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return held("it was cut off after %d bytes: %v", wrote, err)
				}
			}
			return held("it was taken in %s, and the box still answers", time.Since(began).Round(time.Millisecond))
		},
	},
}
