package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox/verify"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/tool/agent"
)

// A Program is one run of the command line, with everything it takes from its
// surroundings.
type Program struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// Env looks up an environment variable, as os.LookupEnv does.
	Env func(name string) (value string, ok bool)

	// Backends are the sandbox backends of this build, the strongest first.
	Backends []Backend
}

// A Backend makes one kind of sandbox. Package main lists them, so that this
// package builds without their engines.
type Backend fieldwork.Backend

// BackendOptions are what a backend may need to know of this run.
type BackendOptions = fieldwork.BackendOptions

// Main runs one command and returns the process's exit status, from the table in
// exit.go. Interrupts and SIGTERM end the command's context; a second one ends
// the process.
func Main(p Program) int {
	// What a worker runs in a box. First and apart, because a box waits for it.
	if len(p.Args) >= 2 && p.Args[0] == "tool" && p.Args[1] == "serve" {
		return agent.Main(p.Args[2:])
	}
	if len(p.Args) == 2 && p.Args[0] == "sandbox" && p.Args[1] == "probe" {
		if err := verify.Probe(p.Stdin, p.Stdout); err != nil {
			fmt.Fprintln(p.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// From the first signal on, signals have their default effect again.
	context.AfterFunc(ctx, stop)

	root := p.root()
	root.SetArgs(p.Args)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = &interrupted{err}
	}
	return p.report(err)
}

// captureLog has what libraries print by themselves go to log, in a program that has the
// process to itself.
func (p *Program) captureLog(log *slog.Logger) {
	if p.Stderr == os.Stderr {
		telemetry.CaptureStandard(log)
	}
}

// Command groups, in the order of the help.
const (
	groupStart  = "start"
	groupNouns  = "nouns"
	groupMatter = "care"
)

func (p *Program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "bailey",
		Short: "Run AI agents on your own machines",
		Long: `Bailey runs managed agents on your own machines: define an agent, start a
session, and its tools run in an isolated box on a worker of yours. It speaks
the API of Claude Managed Agents, so the official SDKs work against it.

Start with "bailey demo".`,
		SilenceErrors: true, // report prints them
		SilenceUsage:  true,
	}
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err) })
	root.CompletionOptions.HiddenDefaultCmd = false

	root.AddGroup(
		&cobra.Group{ID: groupStart, Title: "Run it:"},
		&cobra.Group{ID: groupNouns, Title: "Use it:"},
		&cobra.Group{ID: groupMatter, Title: "Look after it:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupStart, p.demoCommand(), p.serveCommand(), p.workerCommand(), p.gatewayCommand(), p.edgeCommand())
	add(groupNouns, p.agentsCommand(), p.environmentsCommand(), p.sessionsCommand(), p.vaultsCommand(), p.tunnelsCommand(), p.keysCommand(), p.federationCommand())
	add(groupMatter, p.doctorCommand(), p.sandboxCommand(), p.configCommand(), p.auditCommand(), p.versionCommand())
	root.SetHelpCommandGroupID(groupMatter)
	root.SetCompletionCommandGroupID(groupMatter)
	root.AddCommand(exitCodesTopic())
	root.SetHelpCommand(helpCommand(root))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	checkArgs(root)
	return root
}

// helpCommand is like the library's own, but for a command that does not exist.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show the help of a command",
		Example: "  bailey help sessions create",
		GroupID: groupMatter,
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usageError(root, fmt.Errorf("there is no command %q", "bailey "+oneLine(strings.Join(args, " "), 100)))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// didYouMean names the subcommands of cmd that word may have been meant for, if any.
func didYouMean(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 1 // letters that differ
	if len(word) > 4 {
		cmd.SuggestionsMinimumDistance = 2
	}
	near := cmd.SuggestionsFor(word)
	if len(near) == 0 {
		return ""
	}
	return " (did you mean " + strings.Join(near, " or ") + "?)"
}

// checkArgs makes a wrong number of arguments a usage error everywhere, and an
// unknown subcommand too.
func checkArgs(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.DisableFlagsInUseLine = true
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil && slices.Contains(args, "") {
			// From a variable that is not set, mostly; it would mean another request.
			return usagef("argument %d is empty; usage: %s", slices.Index(args, "")+1, cmd.UseLine())
		}
		if err == nil {
			return nil
		}
		if len(args) > 0 && cmd.HasSubCommands() {
			return usageError(cmd, fmt.Errorf("there is no command %q%s", cmd.CommandPath()+" "+args[0], didYouMean(cmd, args[0])))
		}
		return usagef("usage: %s; see %s --help", cmd.UseLine(), cmd.CommandPath())
	}
	for _, sub := range cmd.Commands() {
		checkArgs(sub)
	}
}
