package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/audit"
)

func (p *Program) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check and read the record of what was done",
		Long: `The server and every worker keep an audit record of what was done: DATA/audit.jsonl
with its other files beside it. Each line is bound to the one before it and signed
for now and then, so that an edit, a deletion, a reorder or a cut shows, also to
somebody who has nothing but the public key.`,
		Example: `  bailey audit verify bailey-data/audit.jsonl
  bailey audit show bailey-data/audit.jsonl --action approval --since 24h`,
	}
	cmd.AddCommand(p.auditVerifyCommand(), p.auditShowCommand(), p.auditExportCommand(),
		p.auditHoldCommand(), p.auditReleaseCommand(), p.auditCheckpointCommand(), p.auditKeysCommand(), p.auditRotateKeyCommand())
	return cmd
}

// auditEvidence is where the verifier's evidence comes from; "" is beside the
// record.
type auditEvidence struct {
	key, head, public string
	checkpoints       []string
	publicOnly        bool
}

func (p *Program) auditVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Verify an audit record, offline",
		Long: `Verifies every line of an audit record and gives two verdicts. Intact: nothing was
altered. Complete: nothing is missing, not at the beginning or in the middle but
what the record's own retention removed and signed for, and not at the end.

One FILE is a record with its older segments FILE.00000001… and its keys beside it;
several are segments or copies, in order. With the key, each line is proven by
itself. With the public key alone, lines are proven up to the last checkpoint, and
the end of the record by the checkpoints that you have kept: give them with
--checkpoint. Nothing else is needed and nothing is changed. The exit status is 9
if the record does not verify.`,
		Example: `  bailey audit verify bailey-worker/audit.jsonl
  bailey audit verify copy.jsonl --key /safe/audit.key --head /safe/audit.head
  bailey audit verify copy.jsonl --public-key audit.pub --checkpoint last-month.json -o json`,
		Args: cobra.MinimumNArgs(1),
	}
	var e auditEvidence
	f := cmd.Flags()
	f.StringVar(&e.key, "key", "", "the record's key `file` (default FILE.key, if it is there)")
	f.StringVar(&e.head, "head", "", "the record's head `file` (default FILE.head)")
	f.StringVar(&e.public, "public-key", "", "the `file` of the public key to trust; without --key the key beside the record is left alone")
	f.StringArrayVar(&e.checkpoints, "checkpoint", nil, "a checkpoint's `file`, kept elsewhere, that the record must contain; may be given several times")
	out := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		e.publicOnly = e.public != "" && e.key == ""
		summary, err := e.verify(args)
		if err != nil {
			return err
		}
		if *out == outJSON {
			err = printJSON(p.Stdout, summary)
		} else {
			err = p.printAuditVerdict(args, summary)
		}
		if err == nil && !(summary.Intact && summary.Complete) {
			err = &checkFailed{"the record does not verify: " + summary.Problem}
		}
		return err
	}
	return cmd
}

func (p *Program) printAuditVerdict(files []string, s audit.Summary) error {
	proven := fmt.Sprintf("record %d", s.Proven)
	switch {
	case s.Proven == 0:
		proven = "nothing"
	case s.Proven < s.LastSeq:
		proven += fmt.Sprintf("; the %d after it are chained to it, but not signed yet", s.LastSeq-s.Proven)
	}
	back := ""
	if s.ClockBack > 0 {
		back = fmt.Sprintf("%d times: lines older than the line before them", s.ClockBack)
	}
	changes := ""
	if s.KeyChanges > 0 {
		changes = fmt.Sprintf("%d times, each time signed with the key before", s.KeyChanges)
	}
	var end string
	switch s.EndBy {
	case "head":
		end = "the head file beside it"
	case "checkpoint":
		end = "a checkpoint kept elsewhere"
	}
	err := p.printFields(
		field{"record", strings.Join(files, "\n")},
		field{"log", s.Log},
		field{"lines", fmt.Sprintf("%d verified: records %d to %d", s.Records, s.FirstSeq, s.LastSeq)},
		field{"segments", fmt.Sprint(s.Segments)},
		field{"from", when(s.First)},
		field{"to", when(s.Last)},
		field{"last hash", s.LastHash},
		field{"key", s.KeyID},
		field{"public key", s.PublicID},
		field{"keys changed", changes},
		field{"proven up to", proven},
		field{"checkpoints", fmt.Sprint(s.Checkpoints)},
		field{"end known by", end},
		field{"removed", rangesText(s.Removed)},
		field{"missing", rangesText(s.Missing)},
		field{"clock set back", back},
		field{"intact", yesNo(s.Intact)},
		field{"complete", yesNo(s.Complete)},
	)
	if err == nil && s.Intact && s.Complete {
		_, err = fmt.Fprintln(p.Stdout, p.styleOf(p.Stdout).green("The record is intact and complete."))
	}
	return err
}

func rangesText(ranges []audit.Range) string {
	var lines []string
	for _, r := range ranges {
		lines = append(lines, fmt.Sprintf("records %d to %d", r.First, r.Last))
	}
	return strings.Join(lines, "\n")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// verifyAudit verifies the record at path; "" for key or head means the file that
// belongs beside it.
func verifyAudit(path, keyPath, headPath string) (audit.Summary, error) {
	return (&auditEvidence{key: keyPath, head: headPath}).verify([]string{path})
}

func (e *auditEvidence) verify(files []string) (audit.Summary, error) {
	var none audit.Summary
	evidence, err := e.read(files[len(files)-1])
	if err != nil {
		return none, err
	}
	log, err := openAudit(files)
	if err != nil {
		return none, err
	}
	defer log.Close()
	return audit.Verify(log, evidence)
}

// read reads what belongs to the record at path.
func (e *auditEvidence) read(path string) (audit.Evidence, error) {
	var out audit.Evidence
	beside := func(given, ending string) string {
		if given != "" {
			return given
		}
		return path + ending
	}
	if !e.publicOnly {
		key, older, err := audit.ReadKeys(beside(e.key, ".key"))
		switch {
		case err == nil:
			out.Key, out.Older = &key, older
		case e.key != "" || !errors.Is(err, fs.ErrNotExist):
			return out, err
		}
	}
	if e.public != "" || out.Key == nil {
		public, err := audit.ReadPublicKey(beside(e.public, ".pub"))
		if errors.Is(err, fs.ErrNotExist) && e.public == "" {
			if info, err := os.Stat(path); err != nil {
				return out, usagef("%v", err)
			} else if info.IsDir() {
				return out, usagef("%s is a directory: name the record in it, such as %s", path, filepath.Join(path, "audit.jsonl"))
			}
			return out, fmt.Errorf("there is neither %s.key nor %[1]s.pub: give --key or --public-key", path)
		} else if err != nil {
			return out, err
		}
		out.Public = public
	}
	// The head first: a record that grows meanwhile is then ahead of it, never behind.
	if out.Key != nil {
		head, err := readHead(beside(e.head, ".head"))
		if err != nil {
			return out, err
		}
		out.Head = head
	}
	for _, file := range e.checkpoints {
		c, err := audit.ReadCheckpoint(file)
		if err != nil {
			return out, err
		}
		out.Checkpoints = append(out.Checkpoints, c)
	}
	return out, nil
}

// auditHeadMax bounds a head file in bytes; it has a few hundred.
const auditHeadMax = 64 << 10

// readHead returns nil for a head file that is missing; Verify then says so.
func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, auditHeadMax))
}

// openAudit opens a record with its segments, or files in the order given.
func openAudit(files []string) (io.ReadCloser, error) {
	if len(files) == 1 {
		return audit.OpenSegments(files[0])
	}
	all := &joined{}
	var readers []io.Reader
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			_ = all.Close()
			return nil, err
		}
		all.files = append(all.files, f)
		readers = append(readers, f)
	}
	all.Reader = io.MultiReader(readers...)
	return all, nil
}

type joined struct {
	io.Reader
	files []*os.File
}

func (j *joined) Close() error {
	var errs []error
	for _, f := range j.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// auditFilter is the flags that pick records.
type auditFilter struct {
	f            audit.Filter
	since, until string
	actions      []string
	input        string
	key          string
}

func auditFilterFlags(cmd *cobra.Command) *auditFilter {
	var a auditFilter
	f := cmd.Flags()
	f.StringVar(&a.f.Session, "session", "", "records of this session's `id`")
	f.StringVar(&a.f.Environment, "environment", "", "records of this environment's `id`")
	f.StringVar(&a.f.Call, "call", "", "records of this tool call's `id`")
	f.StringVar(&a.f.Request, "request", "", "records of this API request's `id`")
	f.StringVar(&a.f.Actor, "actor", "", "records of this `id` of a key or worker")
	f.StringVar(&a.f.Outcome, "outcome", "", "records with this `outcome`: ok, error, refused, …")
	f.StringSliceVar(&a.actions, "action", nil, "records of these `actions`; egress. is all that begin so")
	f.StringVar(&a.since, "since", "", "records from this `time` on: 2h, 7d, 2026-11-21, or 2026-11-21T09:00:00Z")
	f.StringVar(&a.until, "until", "", "records before this `time`")
	f.StringVar(&a.input, "input", "", "records whose input or output is the contents of this `file`; takes the record's key")
	f.StringVar(&a.key, "key", "", "the record's key `file`, for --input (default FILE.key)")
	must(cmd.RegisterFlagCompletionFunc("action", cobra.FixedCompletions(actionNames(), cobra.ShellCompDirectiveNoFileComp)))
	return &a
}

func actionNames() (names []string) {
	for _, k := range audit.Catalogue {
		names = append(names, k.Action)
	}
	return names
}

// filter reads the flags, for the record at path.
func (a *auditFilter) filter(path string) (f audit.Filter, err error) {
	f = a.f
	for _, action := range a.actions {
		known := slices.ContainsFunc(actionNames(), func(n string) bool {
			return n == action || strings.HasSuffix(action, ".") && strings.HasPrefix(n, action)
		})
		if !known {
			return f, usagef("--action %q is none of %s", action, strings.Join(actionNames(), ", "))
		}
	}
	f.Actions = a.actions
	if f.Since, err = auditTime("--since", a.since); err != nil {
		return f, err
	}
	if f.Until, err = auditTime("--until", a.until); err != nil {
		return f, err
	}
	if a.input == "" {
		return f, nil
	}
	if a.key == "" {
		a.key = path + ".key"
	}
	key, err := audit.ReadKey(a.key)
	if err != nil {
		return f, err
	}
	value, err := os.ReadFile(a.input)
	if err != nil {
		return f, err
	}
	f.Digest = key.Digest(value)
	return f, nil
}

// auditTime reads a time, or how long ago.
func auditTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var d timeValue
	if d.Set(text) == nil {
		return time.Now().Add(-time.Duration(d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("%s %q is not a time such as 2h, 7d, 2026-11-21 or 2026-11-21T09:00:00Z", flag, text)
}
