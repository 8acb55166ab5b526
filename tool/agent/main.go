package agent

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// Main is the command `tool serve`: it serves the tools on standard input and
// output, logs to standard error, and returns the exit status. args are what
// follows the command's name. The process is the agent's alone.
func Main(args []string) int {
	s := Server{Adopt: true, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags := flag.NewFlagSet("tool serve", flag.ContinueOnError)
	flags.StringVar(&s.Workdir, "workdir", ".", "`directory` the tools work in")
	list := func(to *[]string) func(string) error {
		return func(dir string) error {
			*to = append(*to, dir)
			return nil
		}
	}
	flags.Func("allow", "another `directory` the file tools may reach; may be repeated", list(&s.AllowedRoots))
	flags.Func("read-only", "a `directory` that write and edit refuse to change; may be repeated", list(&s.ReadOnlyRoots))
	switch err := flags.Parse(args); {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(os.Stderr, "tool serve: unexpected argument %q\n", flags.Arg(0))
		return 2
	}

	go keepThreads() // while we are being greeted
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := Serve(ctx, s, os.Stdin, os.Stdout); err != nil {
		s.Logger.Error("agent ended", "error", err)
		return 1
	}
	return 0
}
