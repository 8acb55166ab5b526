// Package landlock runs a box's command as a process of the host with fewer rights: the
// last resort where neither namespaces nor gVisor can be had. Landlock keeps it to the
// files of its box and the host's programs, and from other processes; a filter leaves
// it no socket but pairs, and most system calls out.
//
// It is weak. There is one list of processes, one root and one kernel, and no limit on
// memory, processor time or processes. The command sees the names and arguments of the
// host's processes, and what all users may read of its programs and settings. It has
// no network at all, as Landlock knows ports but no addresses. Nothing falls back to
// it: an operator writes its name. The worker should be a user that nobody logs in as:
// terminals of the same user are not out of reach.
//
// As in package none, which does the rest, the paths of the box do not exist, and the
// host's stand in for them.
//
// Start reading at [New], then at driver.restrict.
package landlock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/landlock/cage"
	"github.com/bailey-platform/bailey/sandbox/lockdown"
	"github.com/bailey-platform/bailey/sandbox/netns"
	"github.com/bailey-platform/bailey/sandbox/none"
	"github.com/bailey-platform/bailey/sandbox/workfolder"
)

// Name is the backend's name.
const Name = "landlock"

// Options say how boxes are made.
type Options struct {
	// Launcher is the executable that calls launcher.RunIf in its main. The default is
	// the one that is running.
	Launcher string

	Logger *slog.Logger // nil discards
}

// A Driver runs restricted processes. Create one with [New].
type Driver struct {
	processes *none.Driver
	launcher  string
	root      bool
}

// New returns a driver.
func New(options Options) *Driver {
	d := &Driver{launcher: options.Launcher, root: os.Geteuid() == 0}
	if d.launcher == "" {
		d.launcher = netns.Self
	}
	d.processes = none.NewChanged(options.Logger, d.restrict)
	return d
}

// Name implements [sandbox.Driver].
func (d *Driver) Name() string { return Name }

// Prepare implements [sandbox.Driver].
func (d *Driver) Prepare(_ context.Context, image string) error {
	return refuse(sandbox.Spec{Image: image})
}

// refuse says what of a spec cannot be had, rather than leave it out.
func refuse(spec sandbox.Spec) error {
	switch {
	case spec.Image != "":
		return errors.New("the backend landlock runs on the host's own root and takes no image")
	case len(spec.Files) > 0:
		return errors.New("the backend landlock can mount no files")
	case spec.Network != nil:
		return errors.New("the backend landlock can hold no network rules: its boxes have no network")
	case len(spec.Devices) > 0:
		return errors.New("the backend landlock can offer no devices")
	}
	return nil
}

// Check implements [sandbox.Driver].
func (d *Driver) Check(ctx context.Context) (sandbox.Report, error) {
	version := lockdown.LandlockVersion()
	if version < lockdown.LandlockWhole {
		return sandbox.Report{}, &sandbox.Unavailable{
			Backend: Name,
			Cause:   fmt.Sprintf("this kernel's Landlock is of version %d (0 if it is off), and %d is needed to keep boxes from signalling other processes", version, lockdown.LandlockWhole),
			Remedy:  []string{"use Linux 6.12 or newer", "add landlock to the kernel's parameter lsm="},
		}
	}
	dir, err := os.MkdirTemp("", "bailey-check-")
	if err != nil {
		return sandbox.Report{}, err
	}
	defer os.RemoveAll(dir)
	begun := time.Now()
	box, err := d.Start(ctx, sandbox.Spec{
		ID: strings.ToLower(filepath.Base(dir)), WorkDir: dir,
		Command: []string{"/bin/bash", "--norc", "--noprofile", "-c", "exit 0"},
	})
	if err != nil {
		return sandbox.Report{}, unavailable(err)
	}
	defer box.Stop(context.WithoutCancel(ctx))
	if exit := box.Wait(); exit.Cause != sandbox.CauseExited || exit.Code != 0 {
		return sandbox.Report{}, unavailable(fmt.Errorf("the test box ended so: %+v", exit))
	}
	report := sandbox.Report{
		Backend:   Name,
		Version:   fmt.Sprintf("Landlock %d", version),
		Isolation: sandbox.Restricted,
		Root:      d.root,
		Start:     time.Since(begun),
		Limits: map[string]sandbox.Enforcement{
			"memory":      sandbox.NotHeld,
			"cpu":         sandbox.NotHeld,
			"processes":   sandbox.NotHeld,
			"disk":        sandbox.NotHeld,
			"work_folder": sandbox.NotHeld,
			"lifetime":    sandbox.BestEffort,
			"network":     sandbox.Hard,
		},
		Notes: []string{
			"WEAK: a box is a process of this host with fewer rights. It sees the names and arguments of the host's " +
				"processes and what every user may read of the host's programs and settings, the list of shared memory " +
				"segments among it, and shares its kernel.",
			"Boxes have no network and no sockets. No limit on memory, CPU, processes or disk is held.",
			"Boxes cannot change the mode, owner, times or attributes of a file by its path (chmod, touch -d, tar): " +
				"Landlock could not keep them to their own.",
			"Boxes can read what is typed at other terminals of the user that they run as: the worker's, who must be one " +
				"that nobody logs in as, or for a worker that is root a user of their own.",
		},
	}
	return report, nil
}

func unavailable(err error) error {
	return &sandbox.Unavailable{Backend: Name, Cause: err.Error()}
}

// Start implements [sandbox.Driver].
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	if err := refuse(spec); err != nil {
		return nil, err
	}
	if version := lockdown.LandlockVersion(); version < lockdown.LandlockWhole {
		return nil, fmt.Errorf("this kernel's Landlock is of version %d, and %d is needed", version, lockdown.LandlockWhole)
	}
	// It has no /tmp, and the home directory is made for who names it.
	if !slices.ContainsFunc(spec.Env, func(v string) bool { return strings.HasPrefix(v, "TMPDIR=") }) {
		spec.Env = append(slices.Clone(spec.Env), "TMPDIR="+sandbox.HomePath)
	}
	return d.processes.Start(ctx, spec)
}

// What of the host every box may use, as far as its user may.
var (
	readable = []string{"/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/proc", "/sbin", "/usr"}
	devices  = []string{"/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"}

	// The agent's shell has a terminal, whose name cannot be known before it is made.
	terminals = []string{"/dev/ptmx", "/dev/pts"}
)

const openFilesMax = 8192 // descriptors a process in a box may have open

// restrict has a box's process started with nothing but the rights it is to have.
func (d *Driver) restrict(cmd *exec.Cmd, spec sandbox.Spec, paths map[string]string) (started func() error, err error) {
	plan := cage.Plan{
		Command:   cmd.Args,
		Env:       cmd.Env,
		User:      sandbox.User,
		Change:    d.root,
		Filter:    lockdown.Calls{Box: false}.Filter(),
		Landlock:  lockdown.Landlock{Paths: make(map[string]lockdown.Access), NoTCP: true},
		OpenFiles: openFilesMax,
		FileBytes: uint64(spec.Limits.DiskBytes),
	}
	for inside, outside := range paths {
		if err := d.reachable(outside); err != nil {
			return nil, err
		}
		access := lockdown.Read
		if inside == sandbox.WorkPath || inside == sandbox.HomePath {
			access |= lockdown.Write
			if d.root { // nothing that a box makes on the host is root's
				if err := workfolder.Give(outside); err != nil {
					return nil, err
				}
			}
		}
		plan.Landlock.Paths[outside] |= access
	}
	for _, dir := range readable {
		if _, err := os.Stat(dir); err == nil {
			plan.Landlock.Paths[dir] |= lockdown.Read
		}
	}
	for _, device := range slices.Concat(devices, terminals) {
		if _, err := os.Stat(device); err == nil {
			plan.Landlock.Paths[device] |= lockdown.Read | lockdown.Write
		}
	}
	for _, terminal := range terminals {
		if plan.Landlock.Paths[terminal] != 0 {
			plan.Landlock.Paths[terminal] |= lockdown.Control
		}
	}
	data, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "plan")
	_, err = file.WriteAt(data, 0)
	reason, theirs, pipeErr := os.Pipe()
	if err := errors.Join(err, pipeErr); err != nil {
		for _, f := range []*os.File{file, reason, theirs} {
			f.Close() // a nil one only says so
		}
		return nil, err
	}
	cmd.Path = d.launcher
	cmd.Args = []string{netns.LauncherName, cage.Role}
	cmd.ExtraFiles = []*os.File{file, theirs}
	return func() error {
		file.Close()
		theirs.Close()
		defer reason.Close()
		words, err := io.ReadAll(io.LimitReader(reason, reasonMax))
		if len(words) > 0 {
			return errors.New(string(words))
		}
		return err
	}, nil
}

// reasonMax bounds what a process says of why it cannot be restricted, in bytes.
const reasonMax = 4 << 10

// reachable refuses a path on the way to which directories are closed to the box's user,
// and names them all: there are no mounts by which it would appear elsewhere.
func (d *Driver) reachable(path string) error {
	if !d.root {
		return nil
	}
	var closed []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			closed = append(closed, dir)
		}
		if dir == "/" {
			break
		}
	}
	if len(closed) == 0 {
		return nil
	}
	slices.Reverse(closed)
	return fmt.Errorf("user %d, which boxes run as, cannot reach %s: let it through with chmod o+x %s, or run the worker as an ordinary user",
		sandbox.User, path, strings.Join(closed, " "))
}
