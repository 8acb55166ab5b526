// Bailey runs managed agents on your own machines. What it can do is in package
// cli, how it is put together in ARCHITECTURE.md.
package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/bailey-platform/bailey/cli"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/sandbox/docker"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/landlock"
	"github.com/bailey-platform/bailey/sandbox/launcher"
	"github.com/bailey-platform/bailey/sandbox/none"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/sandbox/oci"
)

func main() {
	// First: a box's parts are this executable, started under another name.
	launcher.RunIf()
	gvisor.RunIfRuntime()
	rerunStatic()

	os.Exit(cli.Main(cli.Program{
		Args:     os.Args[1:],
		Stdin:    os.Stdin,
		Stdout:   os.Stdout,
		Stderr:   os.Stderr,
		Env:      os.LookupEnv,
		Backends: backends,
	}))
}

// backends are the sandboxes of this build, the strongest first. An operator picks one
// by its name; none stands in for another unless the configuration says so.
var backends = []cli.Backend{
	{Name: gvisor.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		starter, err := launched(gvisor.Name, o, false)
		if err != nil {
			return nil, err
		}
		engine, err := agentbin.Engine(o.State)
		return gvisor.New(gvisor.Options{Root: o.State, Runtime: engine, Launcher: starter, Logger: o.Logger}), err
	}},
	{Name: ns.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		starter, err := launched(ns.Name, o, false)
		return ns.New(ns.Options{Root: o.State, Launcher: starter, Logger: o.Logger}), err
	}},
	{Name: oci.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		allowOld := o.AllowOld
		o.AllowOld = false
		starter, err := launched(oci.Name, o, true)
		for _, name := range []string{"crun", "runc"} {
			if found, err := exec.LookPath(name); o.Engine == "" && err == nil {
				o.Engine = found
			}
		}
		return oci.New(oci.Options{Engine: o.Engine, AllowOld: allowOld, Root: o.State, Launcher: starter, Logger: o.Logger}), err
	}},
	daemon(docker.Docker),
	daemon(docker.Podman),
	{Name: landlock.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		starter, err := launched(landlock.Name, o, false)
		return landlock.New(landlock.Options{Launcher: starter, Logger: o.Logger}), err
	}},
	{Name: none.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		_, err := launched(none.Name, o, false)
		d := none.New(o.Logger)
		d.Remember(o.State)
		return d, err
	}},
}

// daemon is the backend of a container daemon.
func daemon(kind docker.Kind) cli.Backend {
	return cli.Backend{Name: string(kind), Images: true, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		runtime := o.Runtime
		o.Runtime = ""
		starter, err := launched(string(kind), o, true)
		host := ""
		if o.Engine != "" {
			host = "unix://" + o.Engine
		}
		return docker.New(docker.Options{Kind: kind, Host: host, Runtime: runtime, Image: o.Image, Root: o.State, Launcher: starter, Logger: o.Logger}), err
	}}
}

// unwanted is the error of an option that a backend has no use for.
func unwanted(name, has, option string) error {
	return &sandbox.Unavailable{Backend: name, Cause: fmt.Sprintf("the backend has %s, and sandbox.%s is set", has, option), Remedy: []string{"remove " + option}}
}

// launched returns the executable that boxes are started by, and refuses options that
// the backend has no use for.
func launched(name string, o cli.BackendOptions, engine bool) (string, error) {
	if o.Engine != "" && !engine {
		return "", unwanted(name, "no engine", "engine")
	}
	if o.Runtime != "" {
		return "", unwanted(name, "no choice of runtimes", "runtime")
	}
	if o.AllowOld {
		return "", unwanted(name, "no engine whose age could be allowed", "allow-old-engine")
	}
	return agentbin.Launcher(o.State)
}
