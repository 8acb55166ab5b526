package daemon

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/client"
)

// recorded returns the actions of the audit record in a file, but for its own.
func recorded(t *testing.T, path string) (actions []string) {
	t.Helper()
	s, err := audit.VerifyFile(path)
	if err != nil || !s.Complete {
		t.Errorf("the audit record does not verify: %+v, %v", s, err)
	}
	log, err := audit.OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for e, err := range audit.Entries(log, audit.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(e.Action, "audit.") {
			actions = append(actions, e.Action)
		}
	}
	return actions
}

func TestAuditRecordIsKeptByDefault(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.TunnelListen = "off" // an edge is on record, too
	cfg.AuditSinks = "file:" + filepath.Join(cfg.Data, "copy.jsonl") + "?required=true"
	d, stop := start(t, cfg)
	cl, err := client.New(client.Config{BaseURL: d.URL(), Key: d.FirstKey()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.CreateAgent(t.Context(), api.AgentCreate{Name: "a", Model: &api.ModelConfig{ID: "m"}}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Data, "audit.jsonl")
	want := []string{audit.PlaneStart, audit.KeyFirst, audit.APIRequest, audit.APIAnswer, audit.PlaneStop}
	if diff := cmp.Diff(want, recorded(t, path)); diff != "" {
		t.Error(diff)
	}
	log, copied := readFile(t, path), readFile(t, filepath.Join(cfg.Data, "copy.jsonl"))
	if log != copied {
		t.Error("the copy differs")
	}
	if strings.Contains(log, d.FirstKey()) || !strings.Contains(log, "audit-sinks=file:") {
		t.Error("the record shows the first key, or not the settings")
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAuditSettings(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		set  func(*Config)
		want string
	}{
		"off":                    {func(c *Config) { c.Audit = "off" }, ""},
		"elsewhere":              {func(c *Config) { c.Audit = filepath.Join(c.Data, "x.jsonl") }, ""},
		"off with sinks":         {func(c *Config) { c.Audit, c.AuditSinks = "off", "file:/x" }, "audit-sinks: there is no audit record"},
		"a sink that is none":    {func(c *Config) { c.AuditSinks = "carrier-pigeon:" }, "audit-sinks"},
		"UDP that is required":   {func(c *Config) { c.AuditSinks = "syslog+udp://h:514?required=true" }, "cannot be required"},
		"a negative retention":   {func(c *Config) { c.AuditRetainDays = -1 }, "audit-retain-days"},
		"a record that is taken": {func(c *Config) { c.Audit = "/dev/null/x" }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t)
			tt.set(&cfg)
			d, err := New(t.Context(), cfg, nil)
			if err == nil {
				err = d.Close()
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want …%s…", err, tt.want)
			}
		})
	}
}

// TestFullDiskOfTheAuditRecord fills the disk that the record is on: a small file
// system of its own, as root; for others, files that may not grow beyond what the
// record has. Nothing can be changed until there is room again.
func TestFullDiskOfTheAuditRecord(t *testing.T) {
	t.Parallel()
	switch how := os.Getenv("DAEMON_FULL"); how {
	case "tmpfs":
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
		filler := filepath.Join(dir, "filler")
		fillDisk(t, filepath.Join(dir, "audit.jsonl"), nil,
			func() error {
				f, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
				if err != nil {
					return err
				}
				defer f.Close()
				for err == nil {
					_, err = f.Write(make([]byte, 4096))
				}
				return nil
			},
			func() error { return os.Remove(filler) })
	case "rlimit":
		var old syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		// Longer than the database will be, so that it alone meets the limit.
		grow := func(l *audit.Log) {
			for range 40 {
				if err := l.Append(audit.Record{Action: audit.PlaneStop, Detail: strings.Repeat("x", 256<<10)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		fillDisk(t, path, grow,
			func() error {
				info, err := os.Stat(path)
				if err != nil {
					return err
				}
				return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(info.Size()) + 10, Max: old.Max})
			},
			func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old) })
	default:
		for _, how := range []string{"tmpfs", "rlimit"} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command(os.Args[0], "-test.run=^TestFullDiskOfTheAuditRecord$", "-test.v")
				cmd.Env = append(os.Environ(), "DAEMON_FULL="+how)
				if how == "tmpfs" {
					if os.Getuid() != 0 {
						t.Skip("mounting a small file system takes root")
					}
					cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
				}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

func fillDisk(t *testing.T, path string, grow func(*audit.Log), fill, room func() error) {
	t.Helper()
	if grow != nil {
		l, err := audit.Open(path, audit.Options{})
		if err != nil {
			t.Fatal(err)
		}
		grow(l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig(t)
	cfg.Audit = path
	d, stop := start(t, cfg)
	cl, err := client.New(client.Config{BaseURL: d.URL(), Key: d.FirstKey()})
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string) error {
		_, err := cl.CreateAgent(t.Context(), api.AgentCreate{Name: name, Model: &api.ModelConfig{ID: "m"}})
		return err
	}
	names := func() (names []string) {
		for a, err := range cl.Agents(t.Context(), client.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, a.Name)
		}
		return names
	}
	if err := create("before"); err != nil {
		t.Fatal(err)
	}
	if err := fill(); err != nil {
		t.Fatal(err)
	}
	// What is left of the last page may take a record or two more.
	taken := 0
	for err = create("while"); err == nil && taken < 100; err = create("while") {
		taken++
	}
	known := len(names())
	for range 20 {
		err := create("while")
		e, ok := errors.AsType[*api.Error](err)
		if !ok || e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Message, "audit record cannot be written") {
			t.Fatalf("on a full disk: %v", err)
		}
	}
	if n := len(names()); n != known || known != taken+1 {
		t.Errorf("%d agents, %d before the refusals, %d said to be made", n, known, taken+1)
	}
	if err := cl.Ready(t.Context()); err == nil {
		t.Error("the server says that it is ready")
	}
	if err := room(); err != nil {
		t.Fatal(err)
	}
	if err := create("after"); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	recorded(t, path)
}
