package cli

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

// backend finds a sandbox backend by the name that a flag gives.
func (p *Program) backend(flag, name string) (Backend, error) {
	for _, b := range p.Backends {
		if b.Name == name {
			return b, nil
		}
	}
	return Backend{}, usagef("--%s %q: there is %s", flag, name, p.backendNames())
}

// driver makes a driver whose own files are in state, with the other options as given.
func (b Backend) driver(state string, o BackendOptions, log *slog.Logger) (sandbox.Driver, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("make the sandbox's directory: %w", err)
	}
	o.State, o.Logger = state, log
	return b.New(o)
}

func (p *Program) strongest() string {
	if len(p.Backends) == 0 {
		return ""
	}
	return p.Backends[0].Name
}

// names are the backends of this build.
func (p *Program) names() []string {
	names := make([]string, len(p.Backends))
	for i, b := range p.Backends {
		names[i] = b.Name
	}
	return names
}

func (p *Program) backendNames() string {
	return strings.Join(p.names(), " or ")
}

// triedFlags say which sandboxes a command tries, and with what settings: those of a
// worker's file, or what flags say.
type triedFlags struct {
	config, environment    string
	image, engine, runtime string
	allowOld               bool
}

func (t *triedFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.config, "worker-config", "", "try what this worker.yaml `file` says: its backends, image, engine and runtime")
	f.StringVar(&t.environment, "environment", "", "with --worker-config: as it says for the environment of this `id`")
	f.StringVar(&t.image, "image", "", "what boxes see as their root: a directory, a tar archive, an OCI layout, or for docker and podman also the name of an image that they have (default this host's programs, which docker and podman cannot have)")
	must(cmd.MarkFlagFilename("worker-config", "yaml", "yml"))
	cmd.MarkFlagsMutuallyExclusive("worker-config", "image")
}

// addEngine adds what one backend may be told besides.
func (t *triedFlags) addEngine(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.engine, "engine", "", "for oci, the `path` of the runtime; for docker and podman, that of the daemon's socket")
	f.StringVar(&t.runtime, "runtime", "", "for docker and podman, the runtime to ask the daemon for")
	f.BoolVar(&t.allowOld, "allow-old-engine", false, "for oci, use a runtime that by its version has a known defect")
	for _, own := range []string{"engine", "runtime", "allow-old-engine"} {
		cmd.MarkFlagsMutuallyExclusive("worker-config", own)
	}
}

// sandbox returns the settings to try: those of the file, if one is named, and else what
// the flags say of the backend.
func (t *triedFlags) sandbox(p *Program, backend string) (fieldwork.Sandbox, error) {
	if t.config == "" {
		image, err := fieldwork.ImagePath(t.image, "")
		if err != nil {
			return fieldwork.Sandbox{}, err
		}
		if t.environment != "" {
			return fieldwork.Sandbox{}, usagef("--environment goes with --worker-config")
		}
		return fieldwork.Sandbox{Backend: backend, Image: image, Engine: t.engine, Runtime: t.runtime, AllowOldEngine: t.allowOld}, nil
	}
	c, err := fieldwork.Load(t.config)
	if err != nil {
		return fieldwork.Sandbox{}, err
	}
	var ids []string
	for _, e := range c.Environments {
		ids = append(ids, e.ID)
	}
	s := c.Settings.Sandbox
	switch i := slices.Index(ids, t.environment); {
	case t.environment != "" && i < 0:
		return fieldwork.Sandbox{}, usagef("--environment %q: %s has %s", t.environment, t.config, strings.Join(ids, ", "))
	case t.environment != "":
		s = c.Environments[i].Sandbox
	case len(ids) > 1:
		return fieldwork.Sandbox{}, usagef("%s has several environments: say with --environment which one, of %s", t.config, strings.Join(ids, ", "))
	case len(ids) == 1:
		s = c.Environments[0].Sandbox
	}
	if s.Backend == "" {
		s.Backend = p.strongest()
	}
	return s, nil
}
