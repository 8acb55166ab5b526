// Bailey runs managed agents on your own machines. What it can do is in package
// cli, how it is put together in ARCHITECTURE.md.
package main

import (
	"os"

	"github.com/bailey-platform/bailey/cli"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/launcher"
	"github.com/bailey-platform/bailey/sandbox/none"
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

// backends are the sandboxes of this build, the strongest first.
var backends = []cli.Backend{
	{Name: gvisor.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		engine, err := agentbin.Engine(o.State)
		if err != nil {
			return nil, err
		}
		starter, err := agentbin.Launcher(o.State)
		return gvisor.New(gvisor.Options{Root: o.State, Runtime: engine, Launcher: starter, Logger: o.Logger}), err
	}},
	{Name: none.Name, New: func(o cli.BackendOptions) (sandbox.Driver, error) {
		return none.New(o.Logger), nil
	}},
}
