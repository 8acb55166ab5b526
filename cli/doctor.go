package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
	"github.com/bailey-platform/bailey/daemon"
	"github.com/bailey-platform/bailey/model"
	"github.com/bailey-platform/bailey/telemetry"
	"github.com/bailey-platform/bailey/worker"
)

// A finding is one thing that was checked.
type finding struct {
	Name   string `json:"name"`
	Status string `json:"status"` // one of the constants below
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

const (
	findingOK     = "ok"
	findingNote   = "note" // worth knowing, and no fault
	findingFailed = "failed"
)

func (p *Program) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that this machine has what Bailey needs",
		Long: `Checks what can be checked from here: the sandboxes of this machine, the data
directory, the server, your key for it and its tunnels, the model endpoint, the
clock. Each fault comes with what to do about it; the exit status is then 9.

It reads the same environment and file as "bailey serve", and the same key as
the other commands, and looks at a gateway whose settings are here
(gateway.yaml) as "bailey gateway check" does. Sandboxes are tried as they are,
or with --worker-config as a worker would use them; all of a worker's settings are
checked with "bailey worker --check". With --leaks it only looks for what boxes of workers that
were killed have left on this machine: processes, control groups, mounts,
containers and, in the workers' data directories, files. With --clean it removes
them where it is certain that their worker is no more: its lock is free, or as
root, no process has it open. Nothing is removed that Bailey did not make.`,
		Example: `  bailey doctor
  bailey doctor --config bailey.yaml -o json
  bailey doctor --worker-config worker.yaml
  bailey doctor --leaks --worker-data /var/lib/bailey-worker
  bailey doctor --leaks --clean --worker-data /var/lib/bailey-worker`,
	}
	c := p.connectFlags(cmd)
	file := cmd.Flags().String("config", "", "the server's YAML `file` (BAILEY_CONFIG)")
	data := cmd.Flags().String("data", "", "the server's data `dir`ectory (BAILEY_DATA)")
	must(cmd.MarkFlagDirname("data"))
	onlyLeaks := cmd.Flags().Bool("leaks", false, "only look for what boxes have left behind")
	clean := cmd.Flags().Bool("clean", false, "with --leaks: remove what is certain to belong to nobody")
	workerData := cmd.Flags().StringArray("worker-data", []string{"bailey-worker"}, "with --leaks: the data `dir`ectory of a worker; may be repeated")
	must(cmd.MarkFlagDirname("worker-data"))
	var tried triedFlags
	tried.add(cmd)
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		if *onlyLeaks {
			return p.printFindings(*out, p.checkLeaks(ctx, *workerData, *clean))
		}
		if *clean {
			return usagef("--clean goes with --leaks")
		}
		boxes, err := p.checkBackends(ctx, &tried)
		if err != nil {
			return err
		}
		if *out == outTable {
			if err := p.printMatrix(boxes); err != nil {
				return err
			}
		}
		findings := append(append([]finding{checkHost()}, checkUDPBuffers("/proc/sys/net/core/rmem_max")...), backendFindings(boxes)...)
		in := daemon.Inputs{Env: p.Env, File: *file, Flags: map[string]string{}}
		if *data != "" {
			in.Flags["data"] = *data
		}
		if in.File == "" {
			in.File, _ = p.Env("BAILEY_CONFIG")
		}
		cfg, _, err := daemon.Load(in)
		if err != nil {
			findings = append(findings, finding{"settings", findingFailed, err.Error(), "`bailey config example` explains every setting"})
		} else {
			findings = append(findings, checkData(cfg), checkVaultKey(ctx, cfg), checkModel(ctx, cfg))
		}
		findings = append(findings, c.checkServer(ctx)...)
		if gw := new(gatewayFlags); gw.path() != "" {
			findings = append(findings, p.doctorGateway(ctx, gw)...)
		}
		return p.printFindings(*out, findings)
	}
	return cmd
}

// printFindings prints what was checked and returns a [checkFailed] if anything
// failed.
func (p *Program) printFindings(out string, findings []finding) error {
	failed := 0
	for _, f := range findings {
		if f.Status == findingFailed {
			failed++
		}
	}
	if out == outJSON {
		if err := printJSON(p.Stdout, findings); err != nil {
			return err
		}
	} else {
		s := p.styleOf(p.Stdout)
		width := 0
		for _, f := range findings {
			width = max(width, len(f.Name))
		}
		for _, f := range findings {
			mark := map[string]string{findingOK: s.green("✓"), findingNote: s.yellow("•"), findingFailed: s.red("✗")}[f.Status]
			fmt.Fprintf(p.Stdout, "%s %-*s  %s\n", mark, width, f.Name, oneLine(f.Detail, 1000))
			if f.Remedy != "" {
				fmt.Fprintf(p.Stdout, "  %-*s  %s\n", width, "", s.bold("→ "+oneLine(f.Remedy, 1000)))
			}
		}
	}
	if failed > 0 {
		return &checkFailed{fmt.Sprintf("%d of %d checks failed", failed, len(findings))}
	}
	return nil
}

// workerFindings turns what a worker found into findings.
func workerFindings(from []worker.Finding) []finding {
	out := make([]finding, len(from))
	for i, f := range from {
		out[i] = finding{f.Name, findingOK, f.Detail, f.Remedy}
		if !f.OK {
			out[i].Status = findingFailed
		}
	}
	return out
}

func checkHost() finding {
	var uts syscall.Utsname
	detail := runtime.GOOS + "/" + runtime.GOARCH
	if err := syscall.Uname(&uts); err == nil {
		detail += ", kernel " + charsToString(uts.Release[:])
	}
	who := "an ordinary user"
	if os.Geteuid() == 0 {
		who = "root"
	}
	return finding{"host", findingOK, fmt.Sprintf("%s, %d CPUs, running as %s, bailey %s", detail, runtime.NumCPU(), who, telemetry.ReadBuild().Version), ""}
}

// charsToString reads a C string; its element type differs between architectures.
func charsToString[T int8 | uint8](chars []T) string {
	var out strings.Builder
	for _, c := range chars {
		if c == 0 {
			break
		}
		out.WriteByte(byte(c))
	}
	return out.String()
}

// diskFreeMin is the free space below which a data directory is worth a word.
const diskFreeMin = 1 << 30

func checkData(cfg *daemon.Config) finding {
	f := finding{Name: "data directory", Remedy: "make it writable for this user, or name another one with --data or BAILEY_DATA"}
	dir := cfg.Data
	// What does not exist yet is made by the first start: its parent counts.
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) || dir == filepath.Dir(dir) {
			f.Status, f.Detail = findingFailed, err.Error()
			return f
		}
		dir = filepath.Dir(dir)
	}
	probe, err := os.CreateTemp(dir, ".bailey-doctor-")
	if err != nil {
		f.Status, f.Detail = findingFailed, fmt.Sprintf("%s cannot be written: %v", cfg.Data, err)
		return f
	}
	probe.Close()
	os.Remove(probe.Name())
	f.Status, f.Detail, f.Remedy = findingOK, cfg.Data+" is writable", ""
	if dir != cfg.Data {
		f.Detail = cfg.Data + " can be made by the first start"
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err == nil {
		free := fs.Bavail * uint64(fs.Bsize)
		f.Detail += fmt.Sprintf(", %d GiB free", free>>30)
		if free < diskFreeMin {
			f.Status, f.Remedy = findingFailed, "free some space: the database refuses writes when the disk is full"
		}
	}
	return f
}

// checkVaultKey sees whether secrets can be sealed and opened.
func checkVaultKey(ctx context.Context, cfg *daemon.Config) finding {
	f := finding{Name: "vault key"}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch id, err := cfg.CheckVaultKey(ctx); {
	case errors.Is(err, fs.ErrNotExist):
		f.Status, f.Detail = findingNote, err.Error()+": a first start makes it"
		f.Remedy = "if the database has secrets already, put the key back: without it they cannot be opened"
	case err != nil:
		f.Status, f.Detail, f.Remedy = findingFailed, err.Error(), "see vault-key in docs/vaults.md: tunnels and credentials need it"
	default:
		f.Status, f.Detail = findingOK, "seals and opens with "+id
	}
	return f
}

// udpBuffer is how large a buffer QUIC asks for, in bytes; below it the system may drop
// what comes in bursts.
const udpBuffer = 7 << 20

// checkUDPBuffers says so where edges and gateways of this host get less.
func checkUDPBuffers(limit string) []finding {
	text, err := os.ReadFile(limit)
	if err != nil {
		return nil // another system, or a sandbox
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && n < udpBuffer {
		return []finding{{"UDP buffers", findingNote, fmt.Sprintf("at most %d KiB: tunnels by QUIC may be slower than they could be", n>>10),
			fmt.Sprintf("where an edge or a gateway runs: sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", udpBuffer, udpBuffer)}}
	}
	return nil
}

// probeTimeout bounds one request of the doctor.
const probeTimeout = 10 * time.Second

// checkModel sees whether something answers at the model's address, and whether it takes
// the key. It asks for nothing that costs.
func checkModel(ctx context.Context, cfg *daemon.Config) finding {
	f := finding{Name: "model endpoint"}
	hasKey := cfg.ModelKey != "" || cfg.ModelKeyFile != ""
	if cfg.ModelKeyFile != "" {
		if _, err := os.Stat(cfg.ModelKeyFile); err != nil {
			f.Status, f.Detail, f.Remedy = findingFailed, err.Error(), "put the key there, or change model-key-file"
			return f
		}
	}
	address := cfg.ModelURL
	if address == "" {
		if cfg.ModelProvider != model.Anthropic {
			f.Status, f.Detail = findingNote, cfg.ModelProvider+": not tried from here"
			return f
		}
		if !hasKey {
			f.Status, f.Detail = findingNote, "none is set up"
			f.Remedy = "set ANTHROPIC_API_KEY or model-key-file for the server, or model-url for an endpoint that needs no key"
			return f
		}
		address = "https://api.anthropic.com"
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, _, took, err := probe(ctx, address)
	if err != nil {
		f.Status, f.Detail, f.Remedy = findingFailed, err.Error(), "check model-url, and that this machine may connect to it"
		return f
	}
	f.Status, f.Detail = findingOK, fmt.Sprintf("%s answers (HTTP %d in %s)", address, status, took.Round(time.Millisecond))
	key, err := cfg.ReadModelKey()
	switch {
	case err != nil:
		f.Status, f.Detail, f.Remedy = findingFailed, err.Error(), "put the key there, or change model-key-file"
	case key == "" || cfg.ModelProvider != model.Anthropic:
		f.Detail += "; no key is tried"
	default:
		tryModelKey(ctx, &f, address, key)
	}
	return f
}

// tryModelKey asks for the list of models, which costs nothing.
func tryModelKey(ctx context.Context, f *finding, address, key string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(address, "/")+"/v1/models?limit=1", nil)
	if err != nil {
		return // it was parsed before
	}
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	res, err := probeClient.Do(req)
	if err != nil {
		f.Status, f.Detail, f.Remedy = findingFailed, "with the key: "+err.Error(), "check model-url, and that this machine may connect to it"
		return
	}
	res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		f.Detail += "; it takes the key"
	case http.StatusUnauthorized, http.StatusForbidden:
		f.Status, f.Detail = findingFailed, fmt.Sprintf("%s refuses the key (HTTP %d)", address, res.StatusCode)
		f.Remedy = "give the server another key (ANTHROPIC_API_KEY, BAILEY_MODEL_KEY or model-key-file)"
	default:
		f.Detail += fmt.Sprintf("; the key could not be tried (no list of models: HTTP %d)", res.StatusCode)
	}
}

// probeClient goes nowhere else than it is told to: a redirect would take a key along.
var probeClient = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// probe makes one GET without a credential.
func probe(ctx context.Context, address string) (status int, date time.Time, took time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, time.Time{}, 0, err
	}
	began := time.Now()
	res, err := probeClient.Do(req)
	if err != nil {
		return 0, time.Time{}, 0, err
	}
	res.Body.Close()
	date, _ = http.ParseTime(res.Header.Get("Date")) // zero if it says nothing
	return res.StatusCode, date, time.Since(began), nil
}

// clockSkewMax is how far two clocks may differ before it is worth mending.
const clockSkewMax = 30 * time.Second

// checkServer looks at the server, its clock and the key.
func (c *connection) checkServer(ctx context.Context) []finding {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	address := c.address()
	server := finding{Name: "server"}
	status, date, took, err := probe(ctx, strings.TrimRight(address, "/")+"/readyz")
	switch {
	case err != nil && address == defaultURL:
		server.Status, server.Detail = findingNote, "no server runs at "+address
		server.Remedy = "start one with `bailey serve`, or name yours with --url or BAILEY_URL"
		return []finding{server}
	case err != nil:
		server.Status, server.Detail, server.Remedy = findingFailed, err.Error(), "check --url or BAILEY_URL, and that the server runs"
		return []finding{server}
	case status != http.StatusOK:
		server.Status, server.Detail = findingFailed, fmt.Sprintf("%s answers, but is not ready (HTTP %d)", address, status)
		server.Remedy = "see the server's log; its database may be away"
	default:
		server.Status, server.Detail = findingOK, fmt.Sprintf("%s is ready (%s)", address, took.Round(time.Millisecond))
	}
	out := []finding{server}
	if !date.IsZero() {
		out = append(out, checkClock(time.Since(date)-took/2))
	}
	key := c.checkKey(ctx)
	out = append(out, key)
	if key.Status == findingOK {
		out = append(out, c.checkTunnels(ctx)...)
	}
	return out
}

func checkClock(skew time.Duration) finding {
	if skew.Abs() <= clockSkewMax {
		return finding{"clock", findingOK, fmt.Sprintf("within %s of the server's", clockSkewMax), ""}
	}
	return finding{"clock", findingFailed, fmt.Sprintf("%s off the server's", skew.Round(time.Second)), "synchronise the clock (chrony, systemd-timesyncd)"}
}

func (c *connection) checkKey(ctx context.Context) finding {
	f := finding{Name: "API key", Status: findingFailed}
	key, source, err := c.credential()
	switch {
	case err != nil:
		f.Detail = err.Error()
		return f
	case key == "":
		f.Detail = "there is none"
		f.Remedy = "give one with --key-file, BAILEY_KEY or BAILEY_KEY_FILE; the first is in admin.key in the server's data directory"
		return f
	}
	cl, err := c.client()
	if err == nil {
		_, err = take(cl.Keys(ctx, "", client.ListOptions{PageSize: 1}), 1)
	}
	if err != nil {
		f.Detail = err.Error()
		if apiError(api.TypeAuthentication, api.TypePermission)(err) {
			f.Remedy = "the key from " + source + " is not an API key of this server; use another one"
		}
		return f
	}
	f.Status, f.Detail = findingOK, "the one from "+source+" is accepted"
	return f
}
