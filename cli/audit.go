package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/audit"
)

func (p *Program) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check the record of what agents did",
		Long: `Every worker keeps a record of the tool calls it ran: DATA/audit.jsonl, with its
head and key files beside it. Each line is bound to the one before it, so an
edit, a deletion, a reorder or a cut shows.`,
	}
	cmd.AddCommand(p.auditVerifyCommand())
	return cmd
}

func (p *Program) auditVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify an audit record, offline",
		Long: `Verifies every line of an audit record and that none is missing at its end, with
the files FILE.head and FILE.key or those given. Nothing else is needed and
nothing is changed. The exit status is 9 if the record does not verify.`,
		Example: `  bailey audit verify bailey-worker/audit.jsonl
  bailey audit verify copy.jsonl --key /safe/audit.key --head /safe/audit.head`,
		Args: cobra.ExactArgs(1),
	}
	key := cmd.Flags().String("key", "", "the record's key `file` (default FILE.key)")
	head := cmd.Flags().String("head", "", "the record's head `file` (default FILE.head)")
	out := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		summary, err := verifyAudit(args[0], *key, *head)
		if err != nil {
			return err
		}
		if *out == outJSON {
			err = printJSON(p.Stdout, summary)
		} else {
			err = p.printFields(
				field{"record", args[0]},
				field{"lines", fmt.Sprintf("%d verified", summary.Records)},
				field{"from", when(summary.First)},
				field{"to", when(summary.Last)},
				field{"last hash", summary.LastHash},
				field{"key", summary.KeyID},
			)
		}
		if err != nil {
			return err
		}
		if !summary.Intact || !summary.Complete {
			return &checkFailed{"the record does not verify: " + summary.Problem}
		}
		if *out == outTable {
			_, err = fmt.Fprintln(p.Stdout, p.styleOf(p.Stdout).green("The record is intact and complete."))
		}
		return err
	}
	return cmd
}

// auditHeadMax bounds a head file in bytes; it has a few hundred.
const auditHeadMax = 64 << 10

// verifyAudit verifies the record at path; "" for key or head means the file that
// belongs beside it.
func verifyAudit(path, keyPath, headPath string) (audit.Summary, error) {
	if keyPath == "" {
		keyPath = path + ".key"
	}
	if headPath == "" {
		headPath = path + ".head"
	}
	key, err := audit.ReadKey(keyPath)
	if err != nil {
		return audit.Summary{}, err
	}
	// The head first: a record that grows meanwhile is then ahead of it, never behind.
	head, err := readHead(headPath)
	if err != nil {
		return audit.Summary{}, err
	}
	log, err := audit.OpenSegments(path)
	if err != nil {
		return audit.Summary{}, err
	}
	defer log.Close()
	return audit.Verify(log, audit.Evidence{Key: &key, Head: head})
}

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
