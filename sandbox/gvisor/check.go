package gvisor

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
		Version:   d.version(),
		Isolation: sandbox.OwnKernel,
		Root:      d.root,
		Limits: map[string]sandbox.Enforcement{
			"memory":      sandbox.BestEffort,
			"cpu":         sandbox.BestEffort,
			"processes":   sandbox.Hard,
			"disk":        sandbox.Hard,
			"work_folder": sandbox.NotHeld,
			"lifetime":    sandbox.Hard,
			"network":     sandbox.Hard,
		},
		Notes: []string{
			"The size of work folders is not limited; keep them on a file system of their own.",
		},
	}
	if h.cgroups != nil {
		report.Limits["memory"], report.Limits["cpu"] = sandbox.Hard, sandbox.Hard
	} else {
		report.Notes = append(report.Notes, fmt.Sprintf("Without control groups (run as root, or under systemd with "+
			"Delegate=yes) memory is looked at every %v, and CPU time is limited to whole CPUs.", watchAlone))
	}
	report.Notes = append(report.Notes, "Boxes without an image see the host's programs (/usr and its like), read-only, and nothing else of it.")

	dir, err := os.MkdirTemp(h.dir, "check-")
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer os.RemoveAll(dir)
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
	u.Remedy = append(u.Remedy, namespaceRemedies("/proc/sys", d.root)...)
	if strings.Contains(u.Cause, "ptrace") {
		u.Remedy = append(u.Remedy, "allow tracing: sysctl kernel.yama.ptrace_scope=1")
	}
	if _, err := os.Stat("/.dockerenv"); err == nil {
		u.Remedy = append(u.Remedy, "if this is a container, give it --security-opt seccomp=unconfined and --cap-add SYS_ADMIN")
	}
	return u
}

// namespaceRemedies says what keeps us from making a user namespace, by what the
// kernel's settings under dir are.
func namespaceRemedies(dir string, root bool) []string {
	setting := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(data))
	}
	var remedies []string
	if setting("user/max_user_namespaces") == "0" {
		remedies = append(remedies, "sysctl user.max_user_namespaces=10000")
	}
	if root {
		return remedies // what follows is for others
	}
	if setting("kernel/unprivileged_userns_clone") == "0" {
		remedies = append(remedies, "sysctl kernel.unprivileged_userns_clone=1")
	}
	if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
		remedies = append(remedies, "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this binary that allows userns")
	}
	return append(remedies, "run as root")
}
