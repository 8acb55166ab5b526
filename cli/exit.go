package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/daemon"
	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

type exit struct {
	code    int
	meaning string
	is      func(error) bool
}

// exits is the table of exit statuses: the first row that knows an error decides.
// Statuses are part of what scripts rely on; they do not change their meaning.
var exits = []exit{
	{0, "it worked", func(err error) bool { return err == nil }},
	{130, "interrupted by a signal", is[*interrupted]},
	{2, "the command line, a setting or an input is wrong", func(err error) bool {
		return is[*badUsage](err) || is[*daemon.SettingError](err) || is[*fieldwork.Invalid](err)
	}},
	{3, "no such thing, or not yours", apiError(api.TypeNotFound)},
	{4, "the key is missing, wrong, or of the wrong kind", func(err error) bool {
		return is[*worker.KeyRefused](err) || apiError(api.TypeAuthentication, api.TypePermission)(err)
	}},
	{5, "the state of things does not allow it (a conflict)", apiError(api.TypeConflict)},
	{6, "the server refused the request as it was sent", apiError(api.TypeInvalidRequest, api.TypeRequestTooLarge)},
	{7, "the server cannot be reached, or with audit export what --to names", unreachable},
	{8, "the server is busy or failed; trying later may help", apiError(api.TypeOverloaded, api.TypeRateLimit, api.TypeTimeout, api.TypeAPI)},
	{9, "a check failed (demo, doctor, sandbox verify, audit verify)", is[*checkFailed]},
	{10, "no usable sandbox on this host", is[*sandbox.Unavailable]},
	{11, "the turn that was waited for was given up", is[*turnFailed]},
	{1, "anything else", func(error) bool { return true }},
}

func is[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}

func apiError(types ...api.ErrorType) func(error) bool {
	return func(err error) bool {
		e := api.AsError(err)
		if e == nil {
			return false
		}
		for _, t := range types {
			if e.Type == t {
				return true
			}
		}
		return false
	}
}

// unreachable is a request that did not arrive. A server's own listener and
// database fail in other ways.
func unreachable(err error) bool { return is[*url.Error](err) }

// A badUsage is a command line that cannot be meant.
type badUsage struct{ msg string }

func (e *badUsage) Error() string { return e.msg }

// usagef is a [badUsage].
func usagef(format string, args ...any) error { return &badUsage{fmt.Sprintf(format, args...)} }

// usageError is err as a badUsage that says where the help is.
func usageError(cmd *cobra.Command, err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return usagef("%s; see %s --help", text, cmd.CommandPath())
}

// A turnFailed is the end of a turn without an answer. The timeline has shown why.
type turnFailed struct{ reason string }

func (e *turnFailed) Error() string {
	return fmt.Sprintf("the turn was given up (%s); the session's last error says why", e.reason)
}

// A checkFailed is a command that worked and found something wrong. What was
// found is printed already.
type checkFailed struct{ msg string }

func (e *checkFailed) Error() string { return e.msg }

// An exportFailed is a place that did not take records of an audit record.
type exportFailed struct {
	to  string
	err error
}

func (e *exportFailed) Error() string { return fmt.Sprintf("export to %s: %v", e.to, e.err) }
func (e *exportFailed) Unwrap() error { return e.err }

// interrupted is a command cut short by a signal.
type interrupted struct{ err error }

func (e *interrupted) Error() string { return "interrupted" }

func (e *interrupted) Unwrap() error { return e.err }

// report prints err on one line of standard error, or one for each problem of a file, and returns the exit status.
func (p *Program) report(err error) int {
	if err != nil && !errors.Is(err, errSilent) {
		lines := []string{explain(err)}
		if invalid, ok := errors.AsType[*fieldwork.Invalid](err); ok {
			lines = strings.Split(invalid.Error(), "\n") // one a problem
		}
		for _, line := range lines {
			text := strings.Join(strings.Fields(clean(line)), " ")
			fmt.Fprintf(p.Stderr, "%s %s\n", p.styleOf(p.Stderr).red("bailey:"), telemetry.Redact([]byte(text)))
		}
	}
	return exitCode(err)
}

// errSilent marks an error that needs no more words.
var errSilent = errors.New("silent")

// already is the error of another run of this program, which has said what it had to say.
type already struct{ code int }

func (e *already) Error() string { return fmt.Sprintf("exit status %d", e.code) }
func (e *already) Unwrap() error { return errSilent }

func exitCode(err error) int {
	if other, ok := errors.AsType[*already](err); ok {
		return other.code
	}
	for _, row := range exits {
		if row.is(err) {
			return row.code
		}
	}
	return 1
}

// explain adds what to do to errors whose own text cannot know.
func explain(err error) string {
	text := err.Error()
	switch {
	case is[*interrupted](err):
		return text
	case apiError(api.TypeAuthentication)(err):
		return text + " (give a key with --key-file, BAILEY_KEY or BAILEY_KEY_FILE)"
	case errors.Is(err, context.DeadlineExceeded):
		return text + " (the server did not answer in time)"
	case is[*exportFailed](err):
		return text + " (is what --to names running, and is its address right?)"
	case unreachable(err):
		return text + " (is `bailey serve` running, and is --url right?)"
	}
	return text
}

func exitCodesTopic() *cobra.Command {
	var text strings.Builder
	text.WriteString("The exit status of every command:\n\n")
	printExits(&text)
	return &cobra.Command{Use: "exit-codes", Short: "The exit statuses and what they mean", Long: strings.TrimRight(text.String(), "\n")}
}

func printExits(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	sorted := slices.SortedFunc(slices.Values(exits), func(a, b exit) int { return a.code - b.code })
	for _, row := range sorted {
		fmt.Fprintf(tw, "  %d\t%s\n", row.code, row.meaning)
	}
	tw.Flush()
}
