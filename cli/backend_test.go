package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	fieldwork "github.com/bailey-platform/bailey/field"
	"github.com/bailey-platform/bailey/sandbox"
)

// told is a backend that notes what it was told, and cannot be used without an image.
func told(name string, images bool, got map[string]BackendOptions) Backend {
	return Backend{Name: name, Images: images, New: func(o BackendOptions) (sandbox.Driver, error) {
		o.State, o.Logger = "", nil
		got[name] = o
		if images && o.Image == "" {
			return nil, &sandbox.Unavailable{Backend: name, Cause: "no image is named", NoImage: true}
		}
		return nil, errors.New("told")
	}}
}

const twoEnvironments = `
sandbox: {backend: oci, engine: /usr/bin/crun, allow-old-engine: true, fallback: [docker], image: box.tar}
environments:
- {id: env_1, key-file: k}
- {id: env_2, key-file: k, sandbox: {backend: docker, engine: /run/d.sock, allow-old-engine: false, runtime: runsc, image: "debian:12"}}
`

// A daemon's image went to the suite and not to the daemon's driver, which then had none
// to make boxes of.
func TestABackendIsTriedWithTheOperatorsSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := filepath.Join(dir, "worker.yaml")
	if err := os.WriteFile(config, []byte(twoEnvironments), 0o600); err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(dir, "box.tar")
	if err := os.WriteFile(tar, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args    []string
		backend string
		want    BackendOptions
		err     string
	}{
		"flags":                {[]string{"--image", "debian:12", "--engine", "/run/d.sock", "--runtime", "runsc"}, "docker", BackendOptions{Image: "debian:12", Engine: "/run/d.sock", Runtime: "runsc"}, ""},
		"of no images":         {[]string{"--image", tar, "--engine", "/usr/bin/crun", "--allow-old-engine"}, "oci", BackendOptions{Engine: "/usr/bin/crun", AllowOld: true}, ""},
		"the file":             {[]string{"--worker-config", config, "--environment", "env_2"}, "", BackendOptions{Image: "debian:12", Engine: "/run/d.sock", Runtime: "runsc"}, ""},
		"its fallback":         {[]string{"--worker-config", config, "--environment", "env_1"}, "docker", BackendOptions{Image: tar}, ""},
		"several environments": {[]string{"--worker-config", config}, "", BackendOptions{}, "say with --environment which one, of env_1, env_2"},
		"another environment":  {[]string{"--worker-config", config, "--environment", "env_3"}, "", BackendOptions{}, "has env_1, env_2"},
		"file and flag":        {[]string{"--worker-config", config, "--engine", "/x"}, "", BackendOptions{}, "engine"},
		"no such backend":      {nil, "foo", BackendOptions{}, `--backend "foo"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(map[string]BackendOptions)
			p := (&testRun{backends: []Backend{told("oci", false, got), told("docker", true, got)}}).program()
			v := verifyFlags{dir: t.TempDir(), backend: test.backend}
			// Not the command itself, which first builds a laboratory.
			cmd := &cobra.Command{RunE: func(cmd *cobra.Command, _ []string) error { return v.run(cmd.Context(), p, outJSON, nil) }}
			v.tried.add(cmd)
			v.tried.addEngine(cmd)
			cmd.SetArgs(append([]string{}, test.args...))
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			err := cmd.ExecuteContext(t.Context())
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			backend := test.backend
			if backend == "" {
				backend = "docker"
			}
			if diff := cmp.Diff(map[string]BackendOptions{backend: test.want}, got); diff != "" {
				t.Errorf("%s (error: %v)", diff, err)
			}
		})
	}
}

// The doctor called docker unusable where it was told of no image to make a box of.
func TestDoctorSaysThatItNeedsAnImage(t *testing.T) {
	t.Parallel()
	got := make(map[string]BackendOptions)
	r := testRun{backends: []Backend{told("oci", false, got), told("docker", true, got)}}
	p := r.program()
	checks, err := p.checkBackends(t.Context(), &triedFlags{})
	if err != nil {
		t.Fatal(err)
	}
	if f := backendFindings(checks)[1]; f.Status != findingNote || !strings.Contains(f.Remedy, "--image") {
		t.Errorf("%+v", f)
	}
	if err := p.printMatrix(checks); err != nil || !strings.Contains(r.stdout.String(), "not tried without --image") {
		t.Errorf("%v\n%s", err, &r.stdout)
	}
	if _, err := p.checkBackends(t.Context(), &triedFlags{image: "debian:12"}); err != nil || got["docker"].Image != "debian:12" {
		t.Errorf("%v, %+v", err, got)
	}
}

// Everything wrong with a file stood on one line.
func TestEachProblemOfAFileHasItsLine(t *testing.T) {
	t.Parallel()
	var r testRun
	if code := r.program().report(&fieldwork.Invalid{Path: "w.yaml", Problems: []string{"line 1: one", "line 2: two"}}); code != 2 {
		t.Errorf("exit status %d", code)
	}
	if got, want := r.stderr.String(), "bailey: w.yaml: line 1: one\nbailey: w.yaml: line 2: two\n"; got != want {
		t.Errorf("%q", got)
	}
}
