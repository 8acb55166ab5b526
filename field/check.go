package field

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/worker"
)

// A Finding is one thing that [Field.Check] looked at.
type Finding struct {
	Environment string // empty for what concerns all of them
	worker.Finding
}

// Check looks at everything that the configuration asks for, without claiming work and
// without getting in the way of a worker that runs already. It starts boxes.
func (f *Field) Check(ctx context.Context) ([]Finding, error) {
	cfg := f.Config()
	dir, err := os.MkdirTemp("", "bailey-check-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	agent, err := f.opts.Agent(dir)
	if err != nil {
		return nil, fmt.Errorf("the executable for boxes: %w", err)
	}
	all := []Finding{{Finding: checkAudit(cfg)}}
	for _, found := range checkSinks(ctx, cfg) {
		all = append(all, Finding{Finding: found})
	}
	// A directory of its own, as Check sweeps what an earlier worker of it left.
	drivers := &drivers{backends: f.opts.Backends, dir: dir, log: f.opts.Logger, made: make(map[driverKey]*checked)}
	defer drivers.discard()
	for i := range cfg.Environments {
		e := &cfg.Environments[i]
		found, err := f.checkEnvironment(ctx, cfg, e, drivers, agent)
		if err != nil {
			return nil, fmt.Errorf("environment %s: %w", e.ID, err)
		}
		for _, one := range found {
			all = append(all, Finding{e.ID, one})
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return all, nil
}

func (f *Field) checkEnvironment(ctx context.Context, cfg *Config, e *Environment, drivers *drivers, agent string) ([]worker.Finding, error) {
	choice, err := drivers.choose(ctx, &e.Settings)
	found := []worker.Finding{boxFinding(choice, err)}
	found = append(found, f.checkNetwork(e))
	for _, c := range e.Credentials {
		found = append(found, f.checkCredential(ctx, c))
	}
	c := f.workerConfig(cfg, e)
	c.Agent = agent
	if choice != nil {
		c.Driver = choice.Driver
		image := checkImage(ctx, choice.Driver, e.Sandbox.Image)
		found = append(found, image)
		if image.OK {
			found = append(found, checkFolder(ctx, choice, e, cfg.Data, c.DataDir, workFolders(c)))
		}
	}
	rest, err := worker.Check(ctx, c)
	return append(found, rest...), err
}

// boxFinding words what choosing a backend came to.
func boxFinding(choice *Choice, err error) worker.Finding {
	if mismatch, ok := errors.AsType[*Mismatch](err); ok {
		return worker.Finding{Name: "box", Detail: strings.Join(mismatch.Reasons, "; "), Remedy: strings.Join(mismatch.Remedy, ", or ")}
	}
	if err != nil {
		return worker.Finding{Name: "box", Detail: err.Error(), Remedy: "see the worker's log"}
	}
	r := choice.Report
	detail := fmt.Sprintf("%s %s: isolation %s, a box starts in %s", r.Backend, r.Version, r.Isolation, r.Start.Round(time.Millisecond))
	var weak []string
	for limit, held := range r.Limits {
		if held != sandbox.Hard {
			weak = append(weak, limit)
		}
	}
	if slices.Sort(weak); len(weak) > 0 {
		detail += "; limits that are not hard: " + strings.Join(weak, ", ")
	}
	if len(choice.PassedBy) > 0 {
		detail += "; as a fallback, because " + strings.Join(choice.PassedBy, "; ")
	}
	return worker.Finding{Name: "box", OK: true, Detail: detail}
}

func checkImage(ctx context.Context, d sandbox.Driver, image string) worker.Finding {
	if image == "" {
		return worker.Finding{Name: "image", OK: true, Detail: "boxes see this host's own programs"}
	}
	began := time.Now()
	if err := d.Prepare(ctx, image); err != nil {
		return worker.Finding{Name: "image", Detail: err.Error(), Remedy: "name a directory, a tar archive or an OCI layout that is there and can be read (sandbox.image)"}
	}
	return worker.Finding{Name: "image", OK: true, Detail: fmt.Sprintf("%s is ready after %s", image, time.Since(began).Round(time.Millisecond))}
}

// checkFolder starts a box where those of sessions will be: a driver's own test box has
// its work folder elsewhere, where the way may be open that is closed here. The last of
// the worker's own directories is that of the folders.
func checkFolder(ctx context.Context, choice *Choice, e *Environment, dirs ...string) worker.Finding {
	parent := dirs[len(dirs)-1]
	found := worker.Finding{Name: "work folder", Remedy: "let boxes reach it, or put work folders elsewhere (work-dir)"}
	err := func() error {
		if err := errors.Join(letThrough(choice.Report, dirs...), os.MkdirAll(parent, 0o700)); err != nil {
			return err
		}
		dir, err := os.MkdirTemp(parent, "check-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		box, err := choice.Driver.Start(ctx, sandbox.Spec{
			ID: strings.ToLower(filepath.Base(dir)), WorkDir: dir, Image: e.Sandbox.Image, Devices: e.Sandbox.Devices,
			Limits:  e.Sandbox.Limits.box(),
			Command: []string{"/bin/bash", "--norc", "--noprofile", "-c", "exit 0"},
		})
		if err != nil {
			return err
		}
		defer box.Stop(context.WithoutCancel(ctx))
		defer context.AfterFunc(ctx, func() { _ = box.Stop(context.WithoutCancel(ctx)) })()
		if exit := box.Wait(); exit.Cause != sandbox.CauseExited || exit.Code != 0 {
			return fmt.Errorf("the test box ended so: %+v", exit)
		}
		return nil
	}()
	if err != nil {
		found.Detail = err.Error()
		return found
	}
	return worker.Finding{Name: "work folder", OK: true, Detail: "a box starts on one in " + parent}
}

func (f *Field) checkNetwork(e *Environment) worker.Finding {
	if e.Network.none() {
		return worker.Finding{Name: "network", OK: true, Detail: "boxes have none"}
	}
	if name := e.Network.ProxyEnv; name != "" {
		text, ok := f.opts.Env(name)
		if !ok {
			return worker.Finding{Name: "network", Detail: "the variable " + name + " is not set", Remedy: "set it to the proxy's address (network.proxy-env), or leave the setting out"}
		}
		if _, err := egress.ParseProxy(text); err != nil {
			return worker.Finding{Name: "network", Detail: err.Error(), Remedy: "set " + name + " to an address such as http://proxy.example.org:3128"}
		}
	}
	mode := e.Network.Mode
	return worker.Finding{Name: "network", OK: true, Detail: fmt.Sprintf("%s; rules: %d, presets: %d", mode, len(e.Network.Rules), len(e.Network.Presets))}
}

func (f *Field) checkCredential(ctx context.Context, c Credential) worker.Finding {
	found := worker.Finding{Name: "credential " + c.Name}
	_, secrets := bind([]Credential{c}, f.opts.Env)
	if _, err := secrets[0].value(ctx); err != nil {
		found.Detail, found.Remedy = err.Error(), "see to it that its source (from) gives the value to this user"
		return found
	}
	found.OK, found.Detail = true, "its value can be read; it goes to "+strings.Join(c.Hosts, ", ")
	return found
}

// checkAudit verifies the audit record that there is: a worker does not start on one that
// was tampered with.
func checkAudit(cfg *Config) worker.Finding {
	path := filepath.Join(cfg.Data, "audit.jsonl")
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return worker.Finding{Name: "audit", OK: true, Detail: "will be kept in " + path}
	}
	summary, err := audit.VerifyFile(path)
	if err == nil && !(summary.Intact && summary.Complete) {
		err = &audit.Damaged{Path: path, Summary: summary}
	}
	if err != nil {
		return worker.Finding{Name: "audit", Detail: err.Error(), Remedy: "see what happened to it (bailey audit verify " + path + "); then move it away with its companions, and keep them"}
	}
	return worker.Finding{Name: "audit", OK: true, Detail: fmt.Sprintf("kept in %s, intact and complete", path)}
}

// sinkPatience bounds connecting to an audit sink.
const sinkPatience = 10 * time.Second

// checkSinks looks at the audit sinks without writing to them.
func checkSinks(ctx context.Context, cfg *Config) []worker.Finding {
	var all []worker.Finding
	for _, text := range cfg.Audit.Sinks {
		found := worker.Finding{Name: "audit sink", Remedy: "see audit.sinks in " + example}
		s, err := sink.Open(text, os.Stdout)
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, sinkPatience)
			found.Detail, found.Remedy = s.Name(), "make it so that this user can write there, or change audit.sinks"
			if s.Required {
				found.Detail += " (required)"
			}
			err = sink.Check(ctx, s)
			cancel()
			_ = s.Close()
		}
		if err != nil {
			found.Detail = strings.TrimPrefix(found.Detail+": "+err.Error(), ": ")
		} else {
			found.OK, found.Remedy = true, ""
		}
		all = append(all, found)
	}
	return all
}
