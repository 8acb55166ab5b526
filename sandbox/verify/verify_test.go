package verify_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/none"
	"github.com/bailey-platform/bailey/sandbox/verify"
)

// The test binary is the prober in the boxes as well, and runs again in the laboratory.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "probe" {
		if err := verify.Probe(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inLab runs the test again in the laboratory, or returns it if that is where it runs.
func inLab(t *testing.T) *verify.Lab {
	t.Helper()
	if verify.Prepared() {
		lab, err := verify.Enter()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lab.Close() })
		return lab
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	verify.Prepare(cmd)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatal("it did not run in the laboratory")
	}
	return nil
}

func prober(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

func run(t *testing.T, driver sandbox.Driver, lab *verify.Lab) verify.Report {
	t.Helper()
	report, err := verify.Run(t.Context(), verify.Options{
		Driver: driver, Prober: prober(t), ProberArgs: []string{"probe"}, Dir: t.TempDir(), Lab: lab,
		Each: func(r verify.Row) { t.Logf("%-8s %-28s %s", r.Status, r.ID, r.Saw) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// A suite that passes where nothing is isolated proves nothing.
func TestFailsWithoutIsolation(t *testing.T) {
	lab := inLab(t)
	if lab == nil {
		return
	}
	report := run(t, none.New(nil), lab)
	rows := make(map[string]verify.Row)
	for _, row := range report.Rows {
		rows[row.ID] = row
	}
	must := []string{
		"filesystem/host-files", "filesystem/write-host", "filesystem/symlink", "filesystem/hard-link",
		"process/kill", "process/environ", "process/visible", "process/unix-sockets",
		"kernel/calls", "kernel/namespaces",
		"network/host-loopback", "network/addresses", "network/ipv6", "network/metadata", "network/private-name", "network/ports",
		"network/udp", "network/dns", "network/sni", "network/host", "network/wildcard", "network/certificate", "network/coalescing",
		"secret/files",
		// Not the CPU and not how many files: on a busy machine nobody gets enough of
		// either to show that nothing holds them back.
		"resource/memory", "resource/processes", "resource/disk",
	}
	if os.Geteuid() == 0 {
		must = append(must, "filesystem/mount", "filesystem/owner", "process/privileges", "process/ptrace", "kernel/sockets", "kernel/settings")
	}
	for _, id := range must {
		if rows[id].Status != verify.Broken {
			t.Errorf("%s: %s %s, and nothing is isolated", id, rows[id].Status, rows[id].Saw)
		}
	}
}

func TestSignature(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "verify.key")
	key, err := verify.Key(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	again, err := verify.Key(path)
	if err != nil || !again.Equal(key) {
		t.Error("another key at the second start", err)
	}
	signed, err := verify.Sign(verify.Report{Backend: "x", Rows: []verify.Row{{ID: "a/b", Status: verify.Broken}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	report, by, err := signed.Open()
	if err != nil || report.Count(verify.Broken) != 1 || !by.Equal(key.Public().(ed25519.PublicKey)) {
		t.Error(report, by, err)
	}
	forged := signed
	forged.Report = []byte(strings.Replace(string(signed.Report), "broken", "held", 1))
	if _, _, err := forged.Open(); err == nil {
		t.Error("a report that was changed passes")
	}
}

func TestUnknownCheckIsRefused(t *testing.T) {
	t.Parallel()
	_, err := verify.Run(t.Context(), verify.Options{Driver: none.New(nil), Only: []string{"network", "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
}
