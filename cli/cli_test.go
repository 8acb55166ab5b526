package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/daemon"
	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/tool/agent"
)

// update rewrites the golden files: go test ./cli -update
var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	// The demo runs this very executable inside its box.
	if len(os.Args) > 2 && os.Args[1] == "tool" && os.Args[2] == "serve" {
		os.Exit(agent.Main(os.Args[3:]))
	}
	flag.Parse()
	os.Exit(m.Run())
}

// A testRun is one run of the command line in an empty environment.
type testRun struct {
	env            map[string]string
	stdin          string
	stdout, stderr bytes.Buffer
	backends       []Backend
}

func (r *testRun) program() *Program {
	backends := r.backends
	if backends == nil {
		backends = []Backend{{Name: "gvisor"}, {Name: "none"}}
	}
	return &Program{
		Stdin:  strings.NewReader(r.stdin),
		Stdout: &r.stdout,
		Stderr: &r.stderr,
		Env: func(name string) (string, bool) {
			v, ok := r.env[name]
			return v, ok
		},
		Backends: backends,
	}
}

// run runs a command and returns the exit status.
func (r *testRun) run(ctx context.Context, args ...string) int {
	p := r.program()
	root := p.root()
	root.SetArgs(args)
	return p.report(root.ExecuteContext(ctx))
}

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test ./cli -update rewrites it):\n%s", path, diff)
	}
}

// Help texts are what most people read: a change of one shows in review.
func TestHelp(t *testing.T) {
	t.Parallel()
	root := new(testRun).program().root()
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		name := cmd.Name()
		if name == "help" || name == "completion" {
			continue
		}
		var text strings.Builder
		help(t, cmd, &text)
		golden(t, filepath.Join("help", name+".txt"), text.String())
	}
}

// help writes the help of cmd and, unless it is the root, of its subcommands.
func help(t *testing.T, cmd *cobra.Command, to *strings.Builder) {
	var r testRun
	args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
	if cmd.HasParent() && !cmd.Runnable() && !cmd.HasSubCommands() { // a help topic
		args = []string{"help", cmd.Name()}
	}
	if code := r.run(t.Context(), args...); code != 0 {
		t.Errorf("%v: exit status %d: %s", args, code, &r.stderr)
	}
	fmt.Fprintf(to, "$ bailey %s\n%s\n", strings.Join(args, " "), &r.stdout)
	if cmd.HasParent() {
		for _, sub := range cmd.Commands() {
			help(t, sub, to)
		}
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s has no short help", cmd.CommandPath())
		}
		if !cmd.HasSubCommands() && cmd.Runnable() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "completion" { // the library's own
				walk(sub)
			}
		}
	}
	walk(new(testRun).program().root())
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	of := func(typ api.ErrorType) error {
		return fmt.Errorf("call: %w", &api.Error{Type: typ, Message: "m"})
	}
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usagef("x"), 2},
		{fmt.Errorf("x: %w", &daemon.SettingError{Name: "listen"}), 2},
		{of(api.TypeNotFound), 3},
		{of(api.TypeAuthentication), 4},
		{of(api.TypePermission), 4},
		{of(api.TypeConflict), 5},
		{of(api.TypeInvalidRequest), 6},
		{of(api.TypeRequestTooLarge), 6},
		{&url.Error{Op: "Get", URL: "http://127.0.0.1:1", Err: &net.OpError{Op: "dial", Err: errors.New("refused")}}, 7},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, 1},
		{&url.Error{Op: "Get", Err: errors.New("refused")}, 7},
		{of(api.TypeOverloaded), 8},
		{of(api.TypeRateLimit), 8},
		{of(api.TypeAPI), 8},
		{&checkFailed{"x"}, 9},
		{&sandbox.Unavailable{Backend: "gvisor"}, 10},
		{&interrupted{of(api.TypeNotFound)}, 130},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("exit status of %v = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		env  map[string]string
		want string // in the one line on standard error
	}{
		{args: []string{"foo"}, want: `there is no command "bailey foo"`},
		{args: []string{"serv"}, want: `there is no command "bailey serv" (did you mean serve?); see bailey --help`},
		{args: []string{"tunnels", "lst"}, want: `there is no command "bailey tunnels lst" (did you mean list?)`},
		{args: []string{"audit", "verify", "/nonexistent"}, want: "no such file or directory"},
		{args: []string{"audit", "verify", "/"}, want: "is a directory: name the record in it"},
		{args: []string{"agents", "foo"}, want: `there is no command "bailey agents foo"`},
		{args: []string{"help", "nonsense"}, want: `there is no command "bailey nonsense"`},
		{args: []string{"help", "sessions", "nonsense"}, want: `there is no command "bailey sessions nonsense"`},
		{args: []string{"completion", "ksh"}, want: `there is no command "bailey completion ksh"`},
		{args: []string{"agents", "get"}, want: "usage: bailey agents get AGENT"},
		{args: []string{"agents", "get", ""}, want: "argument 1 is empty; usage: bailey agents get AGENT"},
		{args: []string{"sessions", "confirm", "sesn_1", ""}, want: "argument 2 is empty"},
		{args: []string{"agents", "list", "--nope"}, want: "unknown flag: --nope; see bailey agents list --help"},
		{args: []string{"agents", "list", "-o", "xml"}, want: `output "xml" is not table or json`},
		{args: []string{"agents", "list", "--limit", "-1"}, want: "--limit must not be negative"},
		{args: []string{"agents", "list", "--url", "nowhere"}, want: `"nowhere" is not an http or https URL`},
		{args: []string{"agents", "list", "--key", "a", "--key-file", "b"}, want: "give one of them"},
		{args: []string{"agents", "list", "--key-file", "/nonexistent"}, want: "read the key:"},
		{args: []string{"agents", "create"}, want: "an agent needs --name and --model"},
		{args: []string{"agents", "create", "--name", "a", "--model", "m", "--tools", "hammer"}, want: `there is no tool "hammer"`},
		{args: []string{"agents", "create", "--name", "a", "--model", "m", "--permission", "never"}, want: `--permission "never"`},
		{args: []string{"agents", "update", "agent_x"}, want: "nothing to change"},
		{args: []string{"environments", "create"}, want: "an environment needs --name"},
		{args: []string{"keys", "create"}, want: "a key needs --name"},
		{args: []string{"keys", "create", "--name", "k", "--save", "/nonexistent/k"}, want: "--save:"},
		{args: []string{"sessions", "create"}, want: "a session needs --agent and --environment"},
		{args: []string{"sessions", "create", "--agent", "a@x", "--environment", "e"}, want: "after @ is not a number"},
		{args: []string{"sessions", "create", "--agent", "a", "--environment", "e", "--budget", "a lot"}, want: "is not an amount of dollars"},
		{args: []string{"sessions", "create", "--agent", "a", "--environment", "e", "--follow"}, want: "--follow needs a --message"},
		{args: []string{"sessions", "send", "s", " "}, want: "the message is empty"},
		{args: []string{"sessions", "events", "s", "--type", "x.y"}, want: `there is no event type "x.y"`},
		{args: []string{"worker"}, want: "--environment-id or ANTHROPIC_ENVIRONMENT_ID is needed"},
		{args: []string{"worker", "--config", "testdata/no-environments.yaml"}, want: "testdata/no-environments.yaml lists no environments"},
		{args: []string{"worker", "--environment-id", "e"}, want: "--environment-key-file or ANTHROPIC_ENVIRONMENT_KEY is needed"},
		{args: []string{"worker", "--environment-id", "e", "--environment-key", "k", "--sandbox", "tent"}, want: `--sandbox "tent": there is gvisor or none`},
		{args: []string{"worker", "--environment-id", "e", "--environment-key", "k", "--memory", "lots"}, want: `"lots" is not a size`},
		{args: []string{"serve", "--listen", "0.0.0.0:1"}, want: "listen (flag --listen): 0.0.0.0:1 can be reached from other machines"},
		{args: []string{"serve"}, env: map[string]string{"BAILEY_CONFIG": "/nonexistent.yaml"}, want: "/nonexistent.yaml"},
		{args: []string{"serve", "--log-format", "xml"}, want: `log-format: "xml" is not one of auto, text, json`},
		{args: []string{"config", "--max-turns", "x"}, want: `"x" is not a whole number`},
		{args: []string{"demo", "--sandbox", "tent"}, want: `--sandbox "tent"`},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			r := testRun{env: tt.env}
			code := r.run(t.Context(), tt.args...)
			got := r.stderr.String()
			if !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("standard error = %q, want one line with %q", got, tt.want)
			}
			if code != 2 && !strings.Contains(tt.want, "nonexistent.yaml") {
				t.Errorf("exit status %d, want 2", code)
			}
			if r.stdout.Len() > 0 {
				t.Errorf("standard output = %q", &r.stdout)
			}
		})
	}
}

// An unreachable server is told apart, with what to do.
func TestServerUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	l.Close()
	var r testRun
	if code := r.run(t.Context(), "agents", "get", "agent_x", "--url", address, "--key", "k"); code != 7 {
		t.Errorf("exit status %d, want 7: %s", code, &r.stderr)
	}
	if !strings.Contains(r.stderr.String(), "is `bailey serve` running") {
		t.Errorf("standard error = %q", &r.stderr)
	}
}

// An error that carries a key, or a trick with the terminal, is printed without.
func TestErrorsAreSafeToPrint(t *testing.T) {
	t.Parallel()
	var r testRun
	r.program().report(errors.New("bad key sk-ant-api03-abcdef\nand \x1b[2J more"))
	if got := r.stderr.String(); strings.Contains(got, "abcdef") || strings.Contains(got, "\x1b") || strings.Count(got, "\n") != 1 {
		t.Errorf("standard error = %q", got)
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"5", "500"}, {"0.50", "50"}, {"0.5", "50"}, {"$12.34", "1234"}, {"0.01", "1"},
		{"0", ""}, {"", ""}, {"-1", ""}, {"1.234", ""}, {"a", ""}, {"1,5", ""}, {"1e3", ""},
	} {
		b, err := budgetOf(tt.in)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("budget %q = %s, want an error", tt.in, b.MaxListCost.Amount)
		case tt.want != "" && (err != nil || b.MaxListCost.Amount != tt.want):
			t.Errorf("budget %q = %v, %v, want %s cents", tt.in, b, err, tt.want)
		}
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want int64 // 0 for an error
	}{
		{"1", 1}, {"512MiB", 512 << 20}, {"2G", 2 << 30}, {"1 KiB", 1024}, {"3T", 3 << 40},
		{"0", 0}, {"-1", 0}, {"1.5G", 0}, {"G", 0}, {"", 0}, {"9999999999G", 0}, {"2GB", 0},
	} {
		var b byteSize
		err := b.Set(tt.in)
		if int64(b) != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("size %q = %d, %v; want %d", tt.in, b, err, tt.want)
		}
	}
}

func TestConfigCommand(t *testing.T) {
	t.Parallel()
	r := testRun{env: map[string]string{"BAILEY_DB": "postgres://u:hunter2@h/d", "BAILEY_MODEL_KEY": "sk-ant-api03-abc"}}
	if code := r.run(t.Context(), "config", "--listen", "127.0.0.1:1"); code != 0 {
		t.Fatalf("exit status %d: %s", code, &r.stderr)
	}
	out := r.stdout.String()
	for _, want := range []string{"127.0.0.1:1", "flag --listen", "env BAILEY_DB", "[set]", "postgres://u:[redacted]@h/d"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "hunter2") || strings.Contains(out, "sk-ant-api03-abc") {
		t.Errorf("a secret is shown:\n%s", out)
	}
}

func TestConfigExample(t *testing.T) {
	t.Parallel()
	var r testRun
	if code := r.run(t.Context(), "config", "example"); code != 0 {
		t.Fatalf("exit status %d: %s", code, &r.stderr)
	}
	golden(t, "bailey.yaml", r.stdout.String())
}

// The key of a server on this machine must not be sent to another one.
func TestAdminKeyStaysOnThisMachine(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll(filepath.Dir(defaultKeyFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(defaultKeyFile, []byte("sk-ant-api03-x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"":                             "sk-ant-api03-x",
		"http://localhost:9":           "sk-ant-api03-x",
		"http://[::1]:9":               "sk-ant-api03-x",
		"https://api.anthropic.com":    "",
		"http://127.0.0.1.example.org": "",
	} {
		c := &connection{p: new(testRun).program(), url: address}
		if key, _, err := c.credential(); err != nil || key != want {
			t.Errorf("%q: key %q, %v; want %q", address, key, err, want)
		}
	}
}

func TestKeyPrecedence(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(" from-file \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	both := map[string]string{"BAILEY_KEY": "from-env", "BAILEY_KEY_FILE": file}
	for _, tt := range []struct {
		name string
		c    connection
		env  map[string]string
		want string
	}{
		{"flag first", connection{key: "from-flag"}, both, "from-flag"},
		{"then the file flag", connection{keyFile: file}, map[string]string{"BAILEY_KEY": "from-env"}, "from-file"},
		{"then the variable", connection{}, both, "from-env"},
		{"then the variable with a file", connection{}, map[string]string{"BAILEY_KEY_FILE": file}, "from-file"},
		{"else none", connection{url: "https://example.org"}, nil, ""},
	} {
		tt.c.p = (&testRun{env: tt.env}).program()
		if key, _, err := tt.c.credential(); err != nil || key != tt.want {
			t.Errorf("%s: key %q, %v; want %q", tt.name, key, err, tt.want)
		}
	}
}
