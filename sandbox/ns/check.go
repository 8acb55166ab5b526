package ns

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/lockdown"
)

// Check implements [sandbox.Driver].
func (d *Driver) Check(ctx context.Context) (sandbox.Report, error) {
	h, err := d.prepare(ctx)
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	report := sandbox.Report{
		Backend:   Name,
		Version:   "Linux " + release(),
		Isolation: sandbox.SharedKernel,
		Root:      d.root,
		Network:   true,
		Freeze:    h.held().Freeze,
		Limits: map[string]sandbox.Enforcement{
			"memory":      enforcement(h.held().Memory),
			"cpu":         enforcement(h.held().CPU),
			"processes":   sandbox.Hard,
			"disk":        sandbox.Hard,
			"work_folder": sandbox.NotHeld,
			"lifetime":    sandbox.Hard,
			"network":     sandbox.Hard,
		},
		Notes: []string{
			"Boxes share the host's kernel: a hole in it is a way out of them.",
			"The size of work folders is not limited; keep them on a file system of their own.",
			"In a box, nproc, /proc/meminfo and /proc/cpuinfo tell of the box (of memory only the total); /proc/stat, " +
				"/proc/loadavg and /proc/uptime tell of the host.",
			"Boxes cannot be checkpointed: that needs CRIU, which has to keep up with the kernel.",
		},
	}
	if held := h.held(); !held.Memory || !held.CPU || !held.Freeze {
		report.Notes = append(report.Notes, fmt.Sprintf("Run as root, or under systemd with Delegate=yes, for control "+
			"groups. Of these there are here for memory: %t, CPU time: %t, freezing: %t.", held.Memory, held.CPU, held.Freeze))
		if !held.Memory {
			report.Notes = append(report.Notes, fmt.Sprintf("Memory is watched, every %v: that of processes, shared "+
				"memory and files in memory, but not what the kernel holds in pipes and sockets. memfd_create and SysV "+
				"segments of more than a page are refused, as they could not be seen.", watchInterval))
		}
		if !held.CPU {
			report.Notes = append(report.Notes, "CPU time is held to whole CPUs, which programs cannot change "+
				"(sched_setaffinity is refused), and other boxes may be on the same ones.")
		}
	}
	if version := lockdown.LandlockVersion(); version < lockdown.LandlockWhole {
		report.Notes = append(report.Notes, fmt.Sprintf("This kernel's Landlock is of version %d, and of %d all is used.", version, lockdown.LandlockWhole))
	}

	d.reportGPU(&report)

	dir, err := os.MkdirTemp(h.dir, checkPrefix)
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer os.RemoveAll(dir)
	begun := time.Now()
	box, err := d.Start(ctx, sandbox.Spec{
		ID:      strings.ToLower(filepath.Base(dir)),
		Command: []string{"/bin/bash", "--norc", "--noprofile", "-c", "echo ready"},
		WorkDir: dir,
		Network: nobody{},
	})
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer box.Stop(context.WithoutCancel(ctx))
	answer, err := readAll(ctx, box)
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	report.Start = time.Since(begun)
	if exit := box.Wait(); answer != "ready\n" || exit.Cause != sandbox.CauseExited || exit.Code != 0 {
		return sandbox.Report{}, d.unavailable(fmt.Errorf("the test box said %.80q and ended so: %+v", answer, exit))
	}
	return report, nil
}

func enforcement(held bool) sandbox.Enforcement {
	if held {
		return sandbox.Hard
	}
	return sandbox.BestEffort
}

// nobody takes the exits of the test box and serves nothing.
type nobody struct{}

func (nobody) Attach(sandbox.Exits) error { return nil }

// readAll reads the little that the test box has to say.
func readAll(ctx context.Context, box sandbox.Box) (string, error) {
	defer context.AfterFunc(ctx, func() { _ = box.Stop(context.WithoutCancel(ctx)) })()
	_, stdout := box.Stdio()
	data, err := io.ReadAll(io.LimitReader(stdout, 1<<10))
	if ctx.Err() != nil {
		return "", fmt.Errorf("the test box did not answer: %w", context.Cause(ctx))
	}
	return string(data), err
}

// release is the kernel's.
func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "of unknown version"
	}
	return unix.ByteSliceToString(name.Release[:])
}
