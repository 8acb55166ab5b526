package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
)

func (p *Program) auditShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show FILE...",
		Short: "Read an audit record, as a person does",
		Long: `Prints the records of an audit record that the flags pick, the newest last. It
reads and does not judge: bailey audit verify does.`,
		Example: `  bailey audit show bailey-data/audit.jsonl
  bailey audit show bailey-data/audit.jsonl --action approval,policy.change --since 24h
  bailey audit show bailey-worker/audit.jsonl --session sesn_… --last 0`,
		Args: cobra.MinimumNArgs(1),
	}
	flags := auditFilterFlags(cmd)
	last := cmd.Flags().Int("last", 200, "how many to show at most, the newest; 0 shows all")
	wide := cmd.Flags().Bool("wide", false, "do not shorten what does not fit the terminal")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		f, err := flags.filter(args[len(args)-1])
		if err != nil {
			return err
		}
		log, err := openAudit(args)
		if err != nil {
			return err
		}
		defer log.Close()
		rows, left, err := auditRows(log, f, *last)
		if err != nil {
			return err
		}
		width := 1 << 20 // for grep and for files
		if isTerminal(p.Stdout) && !*wide {
			width = widthOf(p.Stdout)
		}
		if err := p.printAudit(rows, width); err != nil {
			return err
		}
		if left > 0 {
			fmt.Fprintf(p.Stderr, "%d older ones are not shown; --last 0 shows all\n", left)
		}
		return nil
	}
	return cmd
}

// An auditRow is a record as a person reads it.
type auditRow struct{ seq, time, action, who, about, outcome string }

// auditRows reads the last records that f picks, and how many there were before
// them.
func auditRows(log io.Reader, f audit.Filter, last int) (rows []auditRow, left int, err error) {
	for e, err := range audit.Entries(log, f) {
		if err != nil {
			return nil, 0, err
		}
		rows = append(rows, auditRow{
			seq: strconv.FormatUint(e.Seq, 10), time: when(e.Time), action: e.Action,
			who: e.Actor, about: auditAbout(e), outcome: auditOutcome(e),
		})
		if last > 0 && len(rows) > 2*last { // now and then, not each time
			left += len(rows) - last
			rows = slices.Delete(rows, 0, len(rows)-last)
		}
	}
	if last > 0 && len(rows) > last {
		left += len(rows) - last
		rows = rows[len(rows)-last:]
	}
	return rows, left, nil
}

// auditAbout says what a record is about: whose, and what.
func auditAbout(e *audit.Entry) string {
	var words []string
	add := func(values ...string) {
		for _, v := range values {
			if v != "" {
				words = append(words, v)
			}
		}
	}
	add(e.Attrs["operation"], e.Tool, e.Attrs["host"], e.Attrs["backend"], e.Session, e.Call)
	if e.Session == "" {
		add(e.Environment)
	}
	var rest []string
	for _, name := range slices.Sorted(maps.Keys(e.Attrs)) {
		switch name {
		case "operation", "host", "backend", "status", "decision":
		case "client", "credential", "policy": // with every request or decision: last
			rest = append(rest, name+"="+e.Attrs[name])
		default:
			add(name + "=" + e.Attrs[name])
		}
	}
	switch {
	case e.Checkpoint != nil:
		add(fmt.Sprintf("signs records up to %d", e.Checkpoint.Count))
	case e.Segment != nil:
		add(fmt.Sprintf("segment %d of log %s", e.Segment.Number, e.Segment.Log))
	case e.Removed != nil:
		add(fmt.Sprintf("records %d to %d, %s", e.Removed.First, e.Removed.Last, e.Removed.Rule))
	case e.Hold != nil:
		add(e.Hold.ID, e.Hold.Reason)
		add(e.Hold.Sessions...)
	}
	add(e.Input, e.Detail)
	add(rest...)
	return oneLine(strings.Join(words, " "), 4096)
}

func auditOutcome(e *audit.Entry) string {
	out := e.Outcome
	if s := e.Attrs["status"]; s != "" {
		out += " " + s
	}
	if d := e.Attrs["decision"]; d != "" {
		out = d
	}
	return out
}

// printAudit prints rows aligned. What a record is about comes last and gets the
// rest of the line.
func (p *Program) printAudit(rows []auditRow, width int) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(p.Stderr, "none")
		return err
	}
	s := p.styleOf(p.Stdout)
	header := auditRow{"NO", "TIME", "ACTION", "WHO", "ABOUT", "OUTCOME"}
	var w [5]int
	for _, r := range append(rows, header) {
		for i, cell := range []string{r.seq, r.time, r.action, oneLine(r.who, 36), r.outcome} {
			w[i] = max(w[i], len([]rune(cell)))
		}
	}
	line := func(r auditRow, colour func(auditRow, string) string) error {
		start := fmt.Sprintf("%*s  %-*s  ", w[0], r.seq, w[1], r.time)
		rest := max(width-w[0]-w[1]-w[2]-w[3]-w[4]-10, 24)
		_, err := fmt.Fprintln(p.Stdout, strings.TrimRight(s.dim(start)+
			fmt.Sprintf("%-*s  ", w[2], r.action)+
			fmt.Sprintf("%-*s  ", w[3], oneLine(r.who, 36))+
			colour(r, fmt.Sprintf("%-*s  ", w[4], oneLine(r.outcome, 36)))+
			clip(r.about, rest), " "))
		return err
	}
	if err := line(header, func(_ auditRow, cell string) string { return s.dim(cell) }); err != nil {
		return err
	}
	for _, r := range rows {
		err := line(r, func(r auditRow, cell string) string {
			switch first, _, _ := strings.Cut(r.outcome, " "); first {
			case "ok", "allow", "allowed":
				return s.green(cell)
			case "":
				return cell
			case "refused", "deny", "denied", "error":
				return s.red(cell)
			}
			return s.yellow(cell)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// exportBatch is how many lines are sent at a time, and exportTimeout how long that
// may take.
const (
	exportBatch   = 500
	exportTimeout = 30 * time.Second
)

func (p *Program) auditExportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export FILE...",
		Short: "Copy records elsewhere: JSON lines, syslog, OTLP",
		Long: `Copies the records that the flags pick, as they stand, to standard output or to
another place:

  ` + strings.ReplaceAll(sink.Forms, "\n", "\n  ") + `

For --to file:PATH the file must be new, or a copy that is continued.`,
		Example: `  bailey audit export bailey-data/audit.jsonl --since 2026-11-01 > november.jsonl
  bailey audit export bailey-worker/audit.jsonl --session sesn_… --to syslog+tls://logs.example.com:6514`,
		Args: cobra.MinimumNArgs(1),
	}
	flags := auditFilterFlags(cmd)
	to := cmd.Flags().String("to", "stdout:", "`where` to; see above")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := flags.filter(args[len(args)-1])
		if err != nil {
			return err
		}
		target, err := sink.Open(*to, p.Stdout)
		if err != nil {
			return usageError(cmd, fmt.Errorf("--to: %w", err))
		}
		n, err := exportAudit(cmd.Context(), args, f, target)
		if cerr := target.Close(); err == nil {
			err = cerr
		}
		if *to != "stdout:" || err != nil {
			fmt.Fprintf(p.Stderr, "%d records exported\n", n)
		}
		return err
	}
	return cmd
}

func exportAudit(ctx context.Context, files []string, f audit.Filter, to audit.Sink) (n int, err error) {
	log, err := openAudit(files)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	var batch []audit.Line
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, exportTimeout)
		defer cancel()
		if err := to.Write(ctx, batch); err != nil {
			return &exportFailed{to.Name(), err}
		}
		n, batch = n+len(batch), nil
		return nil
	}
	for e, err := range audit.Entries(log, f) {
		if err != nil {
			return n, err
		}
		batch = append(batch, audit.Line{Seq: e.Seq, Time: e.Time, Action: e.Action, JSON: e.Raw, Hash: e.Hash})
		if len(batch) == exportBatch {
			if err := send(); err != nil {
				return n, err
			}
		}
	}
	return n, send()
}
