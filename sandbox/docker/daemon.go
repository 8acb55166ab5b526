package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/runtimes"
)

// apiMin is the oldest version of the API that boxes can be made by: it can give a
// container control groups of its own to see. docker has it since 20.10.
const apiMin = "1.41"

// patience bounds one request that a daemon answers from what it knows. Starting and
// removing containers are bounded by their callers.
const patience = 10 * time.Second

// A daemon is one that answered, and what it said of itself.
type daemon struct {
	// Static after connect.
	kind     Kind
	client   *client.Client
	info     system.Info
	version  string   // of the daemon and of its default runtime, for people
	notes    []string // what an operator should know of them
	rootless bool     // it is not root on the host
	dir      string   // Options.Root, absolute
	lock     *os.File
	tag      string // on the labels of our containers
	filter   string // of system calls, as the daemon wants it named
}

// connect finds the daemon. It fails with an [*sandbox.Unavailable] that says what to
// do about it.
func (d *Driver) connect(ctx context.Context) (*daemon, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := client.New(client.WithHost(d.socket()), client.WithUserAgent("bailey"))
	if err != nil {
		return nil, err
	}
	found := &daemon{kind: d.options.Kind, client: c}
	if err := found.ask(ctx, d.options.Runtime); err != nil {
		c.Close()
		return nil, d.unreachable(err)
	}
	return found, nil
}

// ask has the daemon say what it is.
func (found *daemon) ask(ctx context.Context, runtime string) error {
	// Before all else, as every other request fails when there is no version in common.
	if _, err := found.client.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return err
	}
	version, err := found.client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return err
	}
	if before(found.client.ClientVersion(), apiMin) {
		return &sandbox.Unavailable{
			Backend: string(found.kind),
			Cause:   fmt.Sprintf("%s %s speaks version %s of the API, and boxes need %s", found.kind, version.Version, found.client.ClientVersion(), apiMin),
			Remedy:  []string{"install docker 20.10 or podman 4, or later"},
		}
	}
	info, err := found.client.Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	found.info = info.Info
	found.version = fmt.Sprintf("%s %s", found.kind, version.Version)
	for _, c := range version.Components {
		if c.Name == "runc" || c.Name == "crun" || strings.HasPrefix(c.Name, "OCI Runtime") {
			line, _, _ := strings.Cut(c.Version, "\n")
			if !strings.Contains(line, " version ") {
				line = c.Name + " version " + line
			}
			found.version += ", " + line
			for _, hole := range runtimes.Parse(line).Holes() {
				found.notes = append(found.notes, hole.String())
			}
		}
	}
	found.rootless = slices.ContainsFunc(found.info.SecurityOptions, func(option string) bool {
		return option == "rootless" || strings.Contains(option, "name=rootless")
	})
	isPodman := slices.ContainsFunc(version.Components, func(c system.ComponentVersion) bool { return c.Name == "Podman Engine" })
	if isPodman != (found.kind == Podman) {
		return &sandbox.Unavailable{
			Backend: string(found.kind),
			Cause:   fmt.Sprintf("what listens there is not %s (%s)", found.kind, found.version),
			Remedy:  []string{`give the other backend, "docker" or "podman"`},
		}
	}
	if _, ok := found.info.Runtimes[runtime]; runtime != "" && !ok && !strings.HasPrefix(runtime, "io.containerd.") && found.kind == Docker {
		return &sandbox.Unavailable{
			Backend: string(found.kind),
			Cause:   fmt.Sprintf("the daemon has no runtime %q", runtime),
			Remedy:  []string{fmt.Sprintf("name it in /etc/docker/daemon.json: \"runtimes\": {%q: {\"path\": \"…\"}}, and restart docker", runtime)},
		}
	}
	return nil
}

// before reports whether one version of the API is older than another. What is not a
// version is.
func before(version, other string) bool {
	var a, b [2]int
	if _, err := fmt.Sscanf(version, "%d.%d", &a[0], &a[1]); err != nil {
		return true
	}
	if _, err := fmt.Sscanf(other, "%d.%d", &b[0], &b[1]); err != nil {
		return false
	}
	return slices.Compare(a[:], b[:]) < 0
}

// unreachable explains why the daemon cannot be asked.
func (d *Driver) unreachable(err error) error {
	if already, ok := errors.AsType[*sandbox.Unavailable](err); ok {
		return already
	}
	u := &sandbox.Unavailable{Backend: d.Name(), Cause: fmt.Sprintf("the daemon at %s: %v", d.socket(), err)}
	switch path := strings.TrimPrefix(d.socket(), "unix://"); {
	case errors.Is(err, context.DeadlineExceeded):
		u.Cause = fmt.Sprintf("the daemon at %s does not answer within %v", d.socket(), patience)
		u.Remedy = []string{fmt.Sprintf("look why, or restart it (systemctl restart %s)", d.Name())}
	case errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "permission denied"):
		u.Remedy = []string{"run as root", fmt.Sprintf("give this user access to %s", path)}
	case d.options.Host != "":
		u.Remedy = []string{fmt.Sprintf("start the daemon that listens at %s, or name another socket (sandbox.engine)", path)}
	case d.options.Kind == Podman && d.root:
		u.Remedy = []string{"systemctl enable --now podman.socket"}
	case d.options.Kind == Podman:
		u.Remedy = []string{"systemctl --user enable --now podman.socket"}
	default:
		u.Remedy = []string{"systemctl enable --now docker"}
	}
	return u
}

// remove ends a container, if it runs, and removes it with all that is its own. One
// that is gone is no error.
func (found *daemon) remove(ctx context.Context, id string) error {
	err := patiently(ctx, func() error {
		_, err := found.client.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		// It may be being removed by now.
		if errdefs.IsNotFound(err) || errdefs.IsConflict(err) && strings.Contains(err.Error(), "already in progress") {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove container %.12s: %w", id, err)
	}
	return nil
}
