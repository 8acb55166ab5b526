package docker

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

// Check implements [sandbox.Driver]. What is between a box and the host it finds out in
// a box, whatever the runtime is called.
func (d *Driver) Check(ctx context.Context) (sandbox.Report, error) {
	found, err := d.prepare(ctx)
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	report := sandbox.Report{
		Backend: d.Name(),
		Version: found.version,
		Root:    d.root,
		Limits: map[string]sandbox.Enforcement{
			"memory":      held(found.info.MemoryLimit),
			"cpu":         held(found.info.CPUCfsQuota),
			"processes":   held(found.info.PidsLimit),
			"disk":        sandbox.Hard,
			"work_folder": sandbox.NotHeld,
			"lifetime":    sandbox.Hard,
			"network":     sandbox.Hard,
		},
		Freeze: !found.rootless || found.info.MemoryLimit, // both need control groups
		Notes: []string{
			"The size of work folders is not limited; keep them on a file system of their own.",
			"A box may write in /tmp, /var/tmp, its home directory and its image's volumes, which share out the limit on disk; the rest of its root is read-only.",
			"Whoever may speak to the daemon is root on this host, and the worker may.",
		},
	}
	if found.rootless {
		report.Notes[2] = "The daemon is not root on this host."
	} else {
		report.Notes = append(report.Notes, "Boxes share the host's users, unless the daemon is set up to map them (userns-remap).")
	}
	if d.options.Runtime == "" {
		report.Notes = append(report.Notes, found.notes...)
	}
	found.reportGPU(&report, d.options.DeviceDirs)

	dir, err := os.MkdirTemp(found.dir, "check-")
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	defer os.RemoveAll(dir)
	network := &probe{}
	spec := sandbox.Spec{
		ID: strings.ToLower(filepath.Base(dir)),
		Command: []string{"/bin/bash", "--norc", "--noprofile", "-c",
			"read -r id </proc/sys/kernel/random/boot_id; echo ready $id; (read -r -t 5 _ </dev/tcp/192.0.2.1/9) 2>/dev/null; true"},
		WorkDir: dir,
		Network: network,
	}
	begun := time.Now()
	answer, err := d.try(ctx, spec)
	if err != nil {
		// Perhaps it is only the network that cannot be served.
		report.Notes = append(report.Notes, fmt.Sprintf("The network of boxes cannot be served: %v.", err))
		spec.Network = nil
		begun = time.Now()
		if answer, err = d.try(ctx, spec); err != nil {
			return sandbox.Report{}, d.unavailable(err)
		}
	}
	report.Start = time.Since(begun)
	fields := strings.Fields(answer)
	if len(fields) == 0 || fields[0] != "ready" {
		return sandbox.Report{}, d.unavailable(fmt.Errorf("the test box said %.80q", answer))
	}
	report.Network = network.reached()
	if spec.Network != nil && !report.Network {
		report.Notes = append(report.Notes, "The network of boxes cannot be served: their runtime has one that does not pass through the host's.")
	}
	ours, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return sandbox.Report{}, d.unavailable(err)
	}
	report.Isolation = sandbox.OwnKernel
	if len(fields) > 1 && fields[1] == strings.TrimSpace(string(ours)) {
		report.Isolation = sandbox.SharedKernel
	}
	return report, nil
}

func held(limit bool) sandbox.Enforcement {
	if limit {
		return sandbox.Hard
	}
	return sandbox.NotHeld
}

// try runs a command in a box and returns what it said.
func (d *Driver) try(ctx context.Context, spec sandbox.Spec) (string, error) {
	box, err := d.Start(ctx, spec)
	if err != nil {
		return "", err
	}
	defer box.Stop(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { _ = box.Stop(context.WithoutCancel(ctx)) })()
	_, stdout := box.Stdio()
	data, err := io.ReadAll(io.LimitReader(stdout, 1<<10))
	if ctx.Err() != nil {
		return "", fmt.Errorf("the test box did not answer: %w", context.Cause(ctx))
	}
	if err != nil {
		return "", err
	}
	if exit := box.Wait(); exit.Cause != sandbox.CauseExited || exit.Code != 0 {
		return "", fmt.Errorf("the test box said %.80q and ended so: %+v", data, exit)
	}
	return string(data), nil
}

// A probe is a network that lets nothing through, and knows whether anything came.
type probe struct{ came chan struct{} }

// Attach implements [sandbox.Network].
func (p *probe) Attach(exits sandbox.Exits) error {
	p.came = make(chan struct{})
	go func() {
		conn, err := exits.TCP.Accept() // ends with the box
		if err == nil {
			close(p.came)
			conn.Close() // which the test box waits for
		}
	}()
	return nil
}

func (p *probe) reached() bool {
	if p.came == nil {
		return false
	}
	select {
	case <-p.came:
		return true
	default:
		return false
	}
}

// unavailable explains why boxes cannot be made here.
func (d *Driver) unavailable(err error) error {
	if already, ok := errors.AsType[*sandbox.Unavailable](err); ok {
		return already
	}
	u := &sandbox.Unavailable{Backend: d.Name(), Cause: err.Error()}
	if strings.Contains(u.Cause, "hybrid mode") { // which crun refuses
		runc := "have it use runc (sandbox.runtime, --runtime)"
		if d.options.Kind == Podman {
			runc = `have it use runc (runtime = "runc" under [engine] in containers.conf, and restart podman.socket)`
		}
		u.Remedy = []string{runc, "boot the host with control groups of version 2 alone (systemd.unified_cgroup_hierarchy=1)"}
	}
	return u
}
