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

	reportGPU(&report, d.options.DeviceDirs)
	dir, err := os.MkdirTemp(h.dir, "check-")
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer os.RemoveAll(dir)
	if err := d.probe(ctx, dir, &report); err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	return report, nil
}

// probe runs a box on dir and sees what can be done with it.
func (d *Driver) probe(ctx context.Context, dir string, report *sandbox.Report) error {
	work, image := filepath.Join(dir, "work"), filepath.Join(dir, "checkpoint")
	for _, name := range []string{work, image} {
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	spec := sandbox.Spec{
		ID:      strings.ToLower(filepath.Base(dir)),
		Command: []string{"/bin/bash", "--norc", "--noprofile", "-c", "echo ready; read; echo done"},
		WorkDir: work,
		Network: nowhere{},
	}
	begun := time.Now()
	box, err := d.Start(ctx, spec)
	if err != nil {
		// Without a network it may do.
		networkErr := err
		spec.Network = nil
		if box, err = d.Start(ctx, spec); err != nil {
			return err
		}
		report.Notes = append(report.Notes, fmt.Sprintf("Boxes can have no network: %v.", networkErr))
	}
	defer box.Stop(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { _ = box.Stop(context.WithoutCancel(ctx)) })()
	stdin, stdout := box.Stdio()
	if err := answers(ctx, stdout, "ready\n"); err != nil {
		return err
	}
	report.Start = time.Since(begun)
	report.Network = spec.Network != nil

	able := func(what string, err error) bool {
		if err != nil {
			report.Notes = append(report.Notes, fmt.Sprintf("%s does not work: %v.", what, err))
		}
		return err == nil
	}
	freezer := box.(sandbox.Freezer)
	err = freezer.Freeze(ctx)
	if err == nil {
		err = freezer.Thaw(ctx)
	}
	report.Freeze = able("Freezing boxes", err)
	// One that can be written can be restored here, or that would be refused.
	report.Checkpoint = able("Checkpointing boxes", box.(sandbox.Checkpointer).Checkpoint(ctx, image))

	if _, err := stdin.Write([]byte("\n")); err != nil {
		return err
	}
	if err := answers(ctx, stdout, "done\n"); err != nil {
		return err
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseExited || exit.Code != 0 {
		return fmt.Errorf("the test box ended so: %+v", exit)
	}
	return nil
}

// nowhere is the network of the test box. Nobody serves its exits.
type nowhere struct{}

func (nowhere) Attach(sandbox.Exits) error { return nil }

// answers reads what the test box has to say.
func answers(ctx context.Context, stdout io.Reader, want string) error {
	got := make([]byte, len(want))
	n, err := io.ReadFull(stdout, got)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the test box did not answer: %w", context.Cause(ctx))
	case err != nil || string(got) != want:
		return fmt.Errorf("the test box said %.80q", got[:n])
	}
	return nil
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
