package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/audit"
)

func (p *Program) auditHoldCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hold FILE",
		Short: "Keep records from being removed",
		Long: `Places a legal hold: no segment of the record that has a record of one of the
sessions, that overlaps the time, or that is named will be removed, whatever its
age, until bailey audit release. The hold itself is a record. A session that nothing
is on record of yet can be held, with a warning. It works whether or
not the process that writes the record is running.`,
		Example: `  bailey audit hold bailey-data/audit.jsonl --id case-17 --reason "request of 21 November" --session sesn_…
  bailey audit hold bailey-data/audit.jsonl --id quarter --from 2026-07-01 --to 2026-10-01
  bailey audit hold bailey-data/audit.jsonl --id freeze --all`,
		Args: cobra.ExactArgs(1),
	}
	var h audit.Hold
	f := cmd.Flags()
	f.StringVar(&h.ID, "id", "", "a `name` for the hold, to release it by (default made up and printed); an existing one is replaced")
	f.StringVar(&h.Reason, "reason", "", "`why`, for those who read the record")
	f.StringArrayVar(&h.Sessions, "session", nil, "a session's `id`; may be given several times")
	f.IntSliceVar(&h.Segments, "segment", nil, "`numbers` of segments")
	from := f.String("from", "", "hold what was recorded from this `time` on")
	to := f.String("to", "", "and before this `time`")
	all := f.Bool("all", false, "hold everything")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if h.From, err = auditTime("--from", *from); err != nil {
			return err
		}
		if h.To, err = auditTime("--to", *to); err != nil {
			return err
		}
		some := len(h.Sessions) > 0 || len(h.Segments) > 0 || *from != "" || *to != ""
		if some == *all {
			return usageError(cmd, errors.New("say what to hold: --session, --segment, --from and --to, or --all"))
		}
		if h.ID == "" {
			var b [4]byte
			_, _ = rand.Read(b[:]) // never fails
			h.ID = "hold-" + hex.EncodeToString(b[:])
		}
		if err := h.Check(); err != nil {
			return usageError(cmd, err)
		}
		err = auditAsk(cmd.Context(), args[0], audit.Request{Hold: &h}, func(l *audit.Log, actor string) error { return l.Hold(actor, h) })
		if err != nil {
			return err
		}
		fmt.Fprintf(p.Stdout, "held: %s\n", h.ID)
		return p.warnOfUnknown(args[0], h.Sessions)
	}
	return cmd
}

// warnOfUnknown names the sessions that a record has nothing of, but the holds on them. To
// hold one that is still to come is no mistake, and to mistype one is.
func (p *Program) warnOfUnknown(path string, sessions []string) error {
	if len(sessions) == 0 {
		return nil
	}
	log, err := openAudit([]string{path})
	if err != nil {
		return err
	}
	defer log.Close()
	unknown := slices.Clone(sessions)
	for e, err := range audit.Entries(log, audit.Filter{}) {
		if err != nil {
			return err
		}
		if unknown = slices.DeleteFunc(unknown, func(id string) bool { return id == e.Session }); len(unknown) == 0 {
			return nil
		}
	}
	fmt.Fprintf(p.Stderr, "%s nothing is on record of %s so far: if that is no mistake, what will be is held\n",
		p.styleOf(p.Stderr).yellow("warning:"), strings.Join(unknown, ", "))
	return nil
}

func (p *Program) auditReleaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "release FILE ID",
		Short:   "Lift a hold",
		Long:    `Lifts a hold. What it held and is old enough is removed within the hour. The release is a record.`,
		Example: `  bailey audit release bailey-data/audit.jsonl case-17 --reason "closed"`,
		Args:    cobra.ExactArgs(2),
	}
	reason := cmd.Flags().String("reason", "", "`why`, for those who read the record")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := auditAsk(cmd.Context(), args[0], audit.Request{Release: args[1], Reason: *reason},
			func(l *audit.Log, actor string) error { return l.Release(actor, args[1], *reason) })
		if err == nil {
			_, err = fmt.Fprintf(p.Stdout, "released: %s\n", args[1])
		}
		return err
	}
	return cmd
}

func (p *Program) auditCheckpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checkpoint FILE",
		Short: "Print the newest signed checkpoint, to keep elsewhere",
		Long: `Prints the newest checkpoint: the signed number and hash of the last record it
covers. Keep it where nobody who can write the record can write. The record can then
neither be changed nor cut up to there without bailey audit verify --checkpoint
noticing. With --sign, one is made now.`,
		Example: `  bailey audit checkpoint bailey-data/audit.jsonl --sign > /mnt/elsewhere/$(date +%F).json`,
		Args:    cobra.ExactArgs(1),
	}
	sign := cmd.Flags().Bool("sign", false, "sign what is not signed yet first")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *sign {
			err := auditAsk(cmd.Context(), args[0], audit.Request{Sign: true}, func(l *audit.Log, _ string) error {
				_, err := l.Checkpoint()
				return err
			})
			if err != nil {
				return err
			}
		}
		c, err := audit.ReadCheckpoint(args[0] + ".checkpoint")
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; --sign makes one", err)
		} else if err != nil {
			return err
		}
		return printJSON(p.Stdout, c)
	}
	return cmd
}

func (p *Program) auditKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys FILE",
		Short: "Show the record's keys, and print the public one",
		Long: `Shows which keys an audit record has and who needs which. With --public, prints
the public key: give it to whoever is to check the record, by a way that whoever can
write the record does not control.`,
		Example: `  bailey audit keys bailey-data/audit.jsonl
  bailey audit keys bailey-data/audit.jsonl --public > audit.pub`,
		Args: cobra.ExactArgs(1),
	}
	public := cmd.Flags().Bool("public", false, "print the public key, in PEM")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		pub, err := audit.ReadPublicKey(args[0] + ".pub")
		if err != nil {
			return err
		}
		if *public {
			_, err := p.Stdout.Write(pub.PEM())
			return err
		}
		id := "not readable here"
		if key, err := audit.ReadKey(args[0] + ".key"); err == nil {
			id = key.ID()
		}
		return p.printFields(
			field{"public key", pub.ID() + "\n" + args[0] + ".pub: checks checkpoints; for everybody"},
			field{"signing key", args[0] + ".sign: signs checkpoints; stays here, secret"},
			field{"key", id + "\n" + args[0] + ".key: proves single lines and finds values; secret, for auditors you trust with writing"},
		)
	}
	return cmd
}

func (p *Program) auditRotateKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-key FILE",
		Short: "Have a record go on with new keys",
		Long: `Makes new keys, the one that signs and the one of single lines, and has the record
go on with them: the old signing key announces them, and a new segment begins. Whoever
trusts one of the record's public keys can verify all of it, before and after. The old
signing key is destroyed. The old key of the lines stays beside the record, as
FILE.key.ID: without it, old lines are proven by checkpoints alone, and values in them
cannot be found. If a key has leaked, give auditors the new public key: whoever has the
old one could announce others. It works whether or not the process that writes the
record is running.`,
		Example: `  bailey audit rotate-key bailey-data/audit.jsonl --reason "a new year"
  bailey audit keys bailey-data/audit.jsonl --public > audit.pub`,
		Args: cobra.ExactArgs(1),
	}
	reason := cmd.Flags().String("reason", "", "`why`, for those who read the record")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := auditAsk(cmd.Context(), args[0], audit.Request{Rekey: true, Reason: *reason},
			func(l *audit.Log, actor string) error { return l.RotateKeys(actor, *reason) })
		if err != nil {
			return err
		}
		public, err := audit.ReadPublicKey(args[0] + ".pub")
		if err == nil {
			_, err = fmt.Fprintf(p.Stdout, "the record goes on with new keys; the public one is %s\n", public.ID())
		}
		return err
	}
	return cmd
}

// auditAskWait is how long a running process has to do what it is asked; it looks
// every second.
const auditAskWait = 15 * time.Second

// auditAsk has something done to the record at path: by the process that writes
// it, if there is one, and here otherwise.
func auditAsk(ctx context.Context, path string, r audit.Request, here func(l *audit.Log, actor string) error) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	// Files made here by somebody else would lock the record's owner out.
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: run this as that user, such as with sudo -u '#%[2]d'", path, st.Uid)
	}
	r.Actor = localUser()
	log, err := audit.Open(path, audit.Options{})
	if err == nil {
		return errors.Join(here(log, r.Actor), log.Close())
	}
	if !errors.Is(err, audit.ErrInUse) {
		return err
	}
	file, err := audit.Ask(path, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, auditAskWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the process that writes %s has not taken %s yet; it will when it can", path, file)
		}
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		why, err := os.ReadFile(file + ".refused")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		_ = os.Remove(file + ".refused")
		return errors.Join(err, errors.New(strings.TrimSpace(string(why))))
	}
}

// localUser names who asks, as this host knows them.
func localUser() string {
	name := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		name += " (" + u.Username + ")"
	}
	return name
}
