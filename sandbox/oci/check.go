package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// Check implements [sandbox.Driver].
func (d *Driver) Check(ctx context.Context) (sandbox.Report, error) {
	h, err := d.prepare(ctx)
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	report := sandbox.Report{
		Backend:   Name,
		Version:   h.engine.Words,
		Isolation: sandbox.SharedKernel,
		Root:      d.root,
		Limits: map[string]sandbox.Enforcement{
			"memory":      sandbox.NotHeld,
			"cpu":         sandbox.BestEffort,
			"processes":   sandbox.Hard,
			"disk":        sandbox.Hard,
			"work_folder": sandbox.NotHeld,
			"lifetime":    sandbox.Hard,
			"network":     sandbox.Hard,
		},
		Network: true,
		Notes: append([]string{
			"The size of work folders is not limited; keep them on a file system of their own.",
			"Boxes without an image see the host's programs (/usr and its like), read-only, and nothing else of it.",
		}, h.engine.notes...),
	}
	if h.cgroups != nil {
		report.Limits["memory"], report.Limits["cpu"] = sandbox.Hard, sandbox.Hard
		report.Freeze = h.cgroups.Held().Freeze
	} else {
		report.Notes = append(report.Notes, "Without control groups (run as root, or under systemd with Delegate=yes) "+
			"memory is not limited, CPU time only to whole CPUs, and boxes cannot be frozen.")
	}
	reportGPU(&report, d.options.DeviceDirs)

	dir, err := os.MkdirTemp(h.dir, "check-")
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer os.RemoveAll(dir)
	if d.root {
		if note, err := h.idMapping(dir); err != nil {
			return sandbox.Report{}, d.unavailable(err)
		} else if note != "" {
			report.Notes = append(report.Notes, note)
		}
	}
	begun := time.Now()
	box, err := d.Start(ctx, sandbox.Spec{
		ID:      strings.ToLower(filepath.Base(dir)),
		Command: []string{"/bin/bash", "--norc", "--noprofile", "-c", "echo ready"},
		WorkDir: dir,
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

// idMapping returns what there is to say of boxes' users on this host.
func (h *host) idMapping(dir string) (note string, err error) {
	r, err := h.users.take()
	if err != nil {
		return "", err
	}
	defer h.users.give(r)
	if r.maps([]string{dir}) {
		return "", nil
	}
	return fmt.Sprintf("The file system of %s cannot map owners (Linux 5.12 can, on most): the users of all boxes are one user of the host, "+
		"each box having a user namespace of its own around it.", h.dir), nil
}

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

// unavailable explains why boxes cannot be made here.
func (d *Driver) unavailable(err error) error {
	if already, ok := errors.AsType[*sandbox.Unavailable](err); ok {
		return already
	}
	u := &sandbox.Unavailable{Backend: Name, Cause: err.Error()}
	setting := func(name string) string {
		data, _ := os.ReadFile(filepath.Join("/proc/sys", name))
		return strings.TrimSpace(string(data))
	}
	if setting("user/max_user_namespaces") == "0" {
		u.Remedy = append(u.Remedy, "sysctl user.max_user_namespaces=10000")
	}
	if !d.root {
		if setting("kernel/unprivileged_userns_clone") == "0" {
			u.Remedy = append(u.Remedy, "sysctl kernel.unprivileged_userns_clone=1")
		}
		if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
			u.Remedy = append(u.Remedy, "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this binary that allows userns")
		}
		u.Remedy = append(u.Remedy, "run as root")
	}
	return u
}
