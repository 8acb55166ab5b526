package cli

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox/verify"
	"github.com/bailey-platform/bailey/telemetry"
)

func (p *Program) sandboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sandbox",
		Short: "Attack the sandboxes of this machine, and see them hold",
		Long: `The sandboxes that this machine can make boxes with. "bailey doctor" says which
there are and what each can do here.`,
	}
	cmd.AddCommand(p.sandboxVerifyCommand())
	return cmd
}

// probeArgs are the arguments by which this program becomes the prober in a box; see
// [Main].
func probeArgs() []string { return []string{"sandbox", "probe"} }

// verifyFlags are what `bailey sandbox verify` was told.
type verifyFlags struct {
	backend, dir, keyFile, report string
	tried                         triedFlags
	only                          []string
	open, publicKey               string
}

func (p *Program) sandboxVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Run the escape and bypass suite on this machine",
		Long: `Starts boxes on this machine and tries, from inside, what has been the way out
of sandboxes before: the file system, processes, the kernel's surface, the
network's rules, secrets, and limits. Each row says what was tried and what was
seen, in the box and from outside it. The report is signed with a key of this
host's; the exit status is 9 if anything did not hold.

Nothing is sent to a real network: every address that a probe reaches for,
private, public or a cloud's metadata service, is played by this program in a
network namespace of its own. What a probe uses up is bounded, so that a
sandbox which holds nothing is not the end of the host.`,
		Example: `  bailey sandbox verify
  bailey sandbox verify --backend ns --only network,secret
  bailey sandbox verify --backend docker --image debian:12
  bailey sandbox verify --worker-config worker.yaml --environment env_…
  bailey sandbox verify --report verified.json
  bailey sandbox verify --open verified.json
  bailey sandbox verify --backend none        # what it looks like when nothing holds`,
	}
	var v verifyFlags
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&v.backend, "backend", "", "which sandbox: "+p.backendNames()+" (default "+p.strongest()+", or that of --worker-config)")
	v.tried.add(cmd)
	v.tried.addEngine(cmd)
	f.StringSliceVar(&v.only, "only", nil, "`groups` or single checks: "+strings.Join(verify.Groups(), ", "))
	f.StringVar(&v.report, "report", "", "write the signed report to this `file`")
	f.StringVar(&v.keyFile, "key", "", "the `file` with this host's signing key, made if missing (default verify.key in --data)")
	f.StringVar(&v.dir, "data", "bailey-worker", "a `dir`ectory for the signing key")
	f.StringVar(&v.open, "open", "", "do not attack anything: check the signature of the report in this `file` and show it")
	f.StringVar(&v.publicKey, "public-key", "", "with --open: the `key` (base64) that must have signed it")
	must(cmd.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions(p.names(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(verify.Groups(), cobra.ShellCompDirectiveNoFileComp)))
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if v.open != "" {
			return v.openReport(p, *out)
		}
		if v.publicKey != "" {
			return usagef("--public-key goes with --open")
		}
		if !verify.Prepared() {
			return p.inLab(cmd.Context(), func() error { return v.run(cmd.Context(), p, *out, nil) })
		}
		lab, err := verify.Enter()
		if err != nil {
			return fmt.Errorf("build the laboratory: %w", err)
		}
		defer lab.Close()
		return v.run(cmd.Context(), p, *out, lab)
	}
	return cmd
}

// inLab runs the program again, with the same arguments, in a network namespace that
// leads nowhere. Where none can be made, without is run, and says so.
func (p *Program) inLab(ctx context.Context, without func() error) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, p.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	verify.Prepare(cmd)
	err = cmd.Run()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		return &already{ended.ExitCode()}
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(p.Stderr, "no network namespace can be made here (%v), so the network's rules are not tried\n", err)
		return without()
	}
	return err
}

// run attacks the backend and prints what came of it.
func (v *verifyFlags) run(ctx context.Context, p *Program, out string, lab *verify.Lab) error {
	settings, err := v.tried.sandbox(p, cmp.Or(v.backend, p.strongest()))
	if err != nil {
		return err
	}
	backend, err := p.backend("backend", cmp.Or(v.backend, settings.Backend))
	if err != nil {
		return err
	}
	if v.keyFile == "" {
		v.keyFile = filepath.Join(v.dir, "verify.key")
	}
	key, err := verify.Key(v.keyFile)
	if err != nil {
		return fmt.Errorf("the signing key: %w", err)
	}
	dir, err := os.MkdirTemp("", "bailey-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	prober, err := everybodys(filepath.Join(dir, "prober"))
	if err != nil {
		return err
	}
	log, err := telemetry.NewLogger(p.Stderr, telemetry.LogOptions{Format: telemetry.FormatAuto, Terminal: isTerminal(p.Stderr), Level: slog.LevelError})
	if err != nil {
		return err
	}
	driver, err := backend.driver(filepath.Join(dir, "sandbox"), settings.Options(fieldwork.Backend(backend)), log)
	if err != nil {
		return err
	}
	defer discard(driver)
	bait := filepath.Join(dir, "bait")
	if err := os.Mkdir(bait, 0o755); err != nil {
		return err
	}
	// Its own directory is not to be what hides the bait.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	o := verify.Options{
		Driver: driver, Image: settings.Image, Prober: prober, ProberArgs: probeArgs(), Dir: bait, Lab: lab, Only: v.only, Logger: log,
	}
	if out == outTable {
		o.Each = rowPrinter(p)
	}
	report, err := verify.Run(ctx, o)
	if err != nil {
		return err
	}
	report.Program = "bailey " + telemetry.ReadBuild().Version
	signed, err := verify.Sign(report, key)
	if err != nil {
		return err
	}
	if v.report != "" {
		data, err := json.Marshal(signed)
		if err != nil {
			return err
		}
		if err := os.WriteFile(v.report, append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	if out == outJSON {
		// Not indented: the signature is of the report's bytes.
		if err := json.NewEncoder(p.Stdout).Encode(signed); err != nil {
			return err
		}
		return verdict(report)
	}
	defer fmt.Fprintf(p.Stdout, "the key is this host's, in %s\n", v.keyFile)
	return p.printVerdict(report, signed)
}

// everybodys returns a path of this program that every user may read and run, at which
// it is put if need be.
func everybodys(copyTo string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	info, err := os.Stat(self)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o005 == 0o005 {
		return self, nil
	}
	from, err := os.Open(self)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.OpenFile(copyTo, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, from)
	return copyTo, errors.Join(err, to.Chmod(0o755), to.Close())
}

// rowPrinter prints rows as they come.
func rowPrinter(p *Program) func(verify.Row) {
	s := p.styleOf(p.Stdout)
	group := ""
	return func(r verify.Row) {
		if r.Group != group {
			group = r.Group
			fmt.Fprintln(p.Stdout, s.bold(group))
		}
		mark := map[verify.Status]string{verify.Held: s.green("✓"), verify.Broken: s.red("✗"), verify.Skipped: s.dim("–")}[r.Status]
		_, name, _ := strings.Cut(r.ID, "/")
		fmt.Fprintf(p.Stdout, "  %s %-16s %s\n", mark, name, r.Tried)
		fmt.Fprintf(p.Stdout, "    %-16s %s\n", "", s.dim(oneLine(r.Saw, 300)))
	}
}

// printVerdict prints what it comes to, and returns a [checkFailed] if anything did not
// hold.
func (p *Program) printVerdict(r verify.Report, signed verify.Signed) error {
	fmt.Fprintf(p.Stdout, "\n%s %s on %s: %d held, %d did not, %d not tried\n", r.Backend, r.Version, r.Host,
		r.Count(verify.Held), r.Count(verify.Broken), r.Count(verify.Skipped))
	fmt.Fprintf(p.Stdout, "made %s, signed by the key %s\n", r.At.Format(time.RFC3339), signed.PublicKey)
	return verdict(r)
}

func verdict(r verify.Report) error {
	if n := r.Count(verify.Broken); n > 0 {
		return &checkFailed{fmt.Sprintf("%d of %d checks of %s did not hold", n, len(r.Rows), r.Backend)}
	}
	return nil
}

// openReport checks a report's signature and shows it.
func (v *verifyFlags) openReport(p *Program, out string) error {
	data, err := os.ReadFile(v.open)
	if errors.Is(err, fs.ErrNotExist) {
		return usagef("--open: %v", err)
	}
	if err != nil {
		return err
	}
	var signed verify.Signed
	if err := json.Unmarshal(data, &signed); err != nil {
		return usagef("%s is no report: %v", v.open, err)
	}
	report, key, err := signed.Open()
	if err != nil {
		return &checkFailed{fmt.Sprintf("%s: %v", v.open, err)}
	}
	if v.publicKey != "" {
		want, err := base64.StdEncoding.DecodeString(v.publicKey)
		if err != nil || !key.Equal(ed25519.PublicKey(want)) {
			return &checkFailed{fmt.Sprintf("%s was signed by another key: %s", v.open, signed.PublicKey)}
		}
	}
	if out == outJSON {
		if err := printJSON(p.Stdout, report); err != nil {
			return err
		}
		return verdict(report)
	}
	print := rowPrinter(p)
	for _, row := range report.Rows {
		print(row)
	}
	if v.publicKey == "" {
		defer fmt.Fprintln(p.Stdout, "nobody has changed it since; that it is of the host you think, only --public-key with the key you have from there proves")
	}
	return p.printVerdict(report, signed)
}
