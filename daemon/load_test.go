package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/control"
)

func env(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return func(name string) (string, bool) {
		v, ok := m[name]
		return v, ok
	}
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bailey.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadPrecedence(t *testing.T) {
	t.Parallel()
	file := configFile(t, `
listen: 127.0.0.1:1
data: from-file
max-turns: 7
insecure-http: true
model-ids: {a: b, c: d}
`)
	cfg, sources, err := Load(Inputs{
		File:  file,
		Env:   env("BAILEY_LISTEN", "127.0.0.1:2", "BAILEY_DATA", "from-env", "BAILEY_LOG_LEVEL", ""),
		Flags: map[string]string{"listen": "127.0.0.1:3", "shutdown-grace": "1m"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Listen = "127.0.0.1:3"
	want.Data = "from-env"
	want.MaxTurns = 7
	want.InsecureHTTP = true
	want.ModelIDs = map[string]string{"a": "b", "c": "d"}
	want.ShutdownGrace = time.Minute
	if diff := cmp.Diff(&want, cfg); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"listen":         "flag --listen",
		"data":           "env BAILEY_DATA",
		"max-turns":      file + ":4",
		"shutdown-grace": "flag --shutdown-grace",
		"log-level":      SourceDefault,
		"db":             SourceDefault,
	} {
		if sources[name] != want {
			t.Errorf("source of %s = %q, want %q", name, sources[name], want)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		file  string
		env   []string
		flags map[string]string
		want  string // in the error
	}{
		{name: "unknown key", file: "listen: 127.0.0.1:1\nmodel-ulr: x\n", want: "bailey.yaml:2): there is no such setting"},
		{name: "unknown key is named", file: "model-ulr: x\n", want: "model-ulr ("},
		{name: "key twice", file: "data: a\ndata: b\n", want: "line 2: data is already set on line 1"},
		{name: "two documents", file: "data: a\n---\ndata: b\n", want: "more than one document"},
		{name: "a list", file: "- data\n", want: "line 1: must be a list of `name: value` lines"},
		{name: "a list as value", file: "data: [a]\n", want: "line 1: data: must be a single value"},
		{name: "a mapping as value", file: "data: {a: b}\n", want: "data ("},
		{name: "no value", file: "data:\n", want: "line 1: data: has no value"},
		{name: "not YAML", file: "data: 'x\n", want: "line"},
		{name: "secret in the file", file: "model-key: sk-ant-api03-x\n", want: "a secret is not written into this file"},
		{name: "password in the file", file: "db: postgres://u:hunter2@h/d\n", want: "a password is not written into this file"},
		{name: "password as parameter in the file", file: "db: postgres://h/d?password=hunter2\n", want: "a password is not written into this file"},
		{name: "wrong type names the variable", env: []string{"BAILEY_MAX_TURNS", "many"}, want: `max-turns (env BAILEY_MAX_TURNS): "many" is not a whole number`},
		{name: "wrong duration", flags: map[string]string{"shutdown-grace": "10"}, want: `shutdown-grace (flag --shutdown-grace): "10" is not a duration`},
		{name: "bad value names its source", flags: map[string]string{"log-level": "loud"}, want: `log-level (flag --log-level): "loud" is not one of`},
		{name: "key and key file", env: []string{"BAILEY_MODEL_KEY", "k", "BAILEY_MODEL_KEY_FILE", "f"}, want: "leave one of them out"},
		{name: "not an address", flags: map[string]string{"listen": "8484"}, want: "is not host:port"},
		{name: "open to the network", flags: map[string]string{"listen": "0.0.0.0:8484"}, want: "can be reached from other machines"},
		{name: "all interfaces", flags: map[string]string{"listen": ":8484"}, want: "can be reached from other machines"},
		{name: "half of TLS", flags: map[string]string{"tls-cert": "c.pem"}, want: "needs tls-key"},
		{name: "unknown database", flags: map[string]string{"db": "mysql://x"}, want: "must be sqlite:PATH"},
		{name: "unknown provider", flags: map[string]string{"model-provider": "acme"}, want: "is not one of anthropic"},
		{name: "price without output", flags: map[string]string{"prices": "m=5"}, want: "is not dollars for input and output"},
		{name: "price that is no number", flags: map[string]string{"prices": "m=5/x"}, want: "is not dollars"},
		{name: "negative price", flags: map[string]string{"prices": "m=-5/1"}, want: "is not dollars"},
		{name: "price too exact", flags: map[string]string{"prices": "m=0.001/1"}, want: "is not dollars"},
		{name: "no turns", flags: map[string]string{"max-turns": "0"}, want: "at least 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := Inputs{Env: env(tt.env...), Flags: tt.flags}
			if tt.file != "" {
				in.File = configFile(t, tt.file)
			}
			_, _, err := Load(in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v, want one with %q", err, tt.want)
			}
			if _, ok := errors.AsType[*SettingError](err); !ok {
				t.Errorf("error %v is a %T, which commands do not take for a wrong setting", err, err)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "sk-ant") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestLoadAccepts(t *testing.T) {
	t.Parallel()
	for _, flags := range []map[string]string{
		{"listen": "[::1]:0"},
		{"listen": "localhost:8484"},
		{"listen": "0.0.0.0:8484", "insecure-http": "true"},
		{"listen": ":8484", "tls-cert": "c", "tls-key": "k"},
		{"db": "sqlite:/x/y.db"},
		{"db": "postgres://u@h:5432/d?passfile=/run/pg"},
		{"model-ids": ""},
	} {
		if _, _, err := Load(Inputs{Env: env(), Flags: flags}); err != nil {
			t.Errorf("%v: %v", flags, err)
		}
	}
	if _, _, err := Load(Inputs{Env: env("BAILEY_DB", "postgres://u:p@h/d")}); err != nil {
		t.Errorf("a password from the environment: %v", err)
	}
	if _, _, err := Load(Inputs{Env: env(), File: configFile(t, "# only a comment\n")}); err != nil {
		t.Errorf("a file of comments: %v", err)
	}
	if _, _, err := Load(Inputs{Env: env(), File: configFile(t, "")}); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestPrices(t *testing.T) {
	t.Parallel()
	cfg := Defaults()
	cfg.Prices = map[string]string{"a": "5/25", "b-*": "0.8/4.05", "free": "0/0"}
	got, err := cfg.prices()
	if err != nil {
		t.Fatal(err)
	}
	want := control.Prices{"a": {Input: 500, Output: 2500}, "b-*": {Input: 80, Output: 405}, "free": {}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("prices (-want +got):\n%s", diff)
	}
}

func TestDatabasePasswordIsNotAFlag(t *testing.T) {
	t.Parallel()
	_, _, err := Load(Inputs{Env: env(), Flags: map[string]string{"db": "postgres://bailey:hunter2@db/bailey"}})
	if _, ok := errors.AsType[*SettingError](err); !ok || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error = %v", err)
	}
}

func TestMissingFileSaysWhich(t *testing.T) {
	t.Parallel()
	_, _, err := Load(Inputs{Env: env(), File: "/nonexistent/bailey.yaml"})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/bailey.yaml") {
		t.Errorf("error = %v", err)
	}
}

// A key for Anthropic must not be sent to another host.
func TestAnthropicKeyStaysWithAnthropic(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		flags map[string]string
		want  Secret
	}{
		{"default endpoint", nil, "k"},
		{"named endpoint", map[string]string{"model-url": "https://api.anthropic.com"}, "k"},
		{"without TLS", map[string]string{"model-url": "http://api.anthropic.com"}, ""},
		{"another endpoint", map[string]string{"model-url": "http://127.0.0.1:11434"}, ""},
		{"a look-alike", map[string]string{"model-url": "https://api.anthropic.com.example.org"}, ""},
		{"another provider", map[string]string{"model-provider": "foundry", "model-resource": "r"}, ""},
		{"a key file", map[string]string{"model-key-file": "f"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, _, err := Load(Inputs{Env: env("ANTHROPIC_API_KEY", "k"), Flags: tt.flags})
			if err != nil {
				t.Fatal(err)
			}
			if cfg.ModelKey != tt.want {
				t.Errorf("model key = %q, want %q", string(cfg.ModelKey), string(tt.want))
			}
		})
	}
}

// The example must be loadable as it stands, with every line uncommented.
func TestExampleIsTheDefaults(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for line := range strings.Lines(Example()) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") && line != "#\n" {
			line = line[1:]
		}
		text.WriteString(line)
	}
	file := configFile(t, text.String())
	cfg, sources, err := Load(Inputs{Env: env(), File: file})
	if err != nil {
		t.Fatalf("%v\n%s", err, text.String())
	}
	want := Defaults()
	want.ModelIDs, want.Prices = map[string]string{}, map[string]string{}
	if diff := cmp.Diff(&want, cfg); diff != "" {
		t.Errorf("example (-default +example):\n%s", diff)
	}
	for _, s := range cfg.Settings() {
		if !s.Secret && sources[s.Name] == SourceDefault {
			t.Errorf("%s is not in the example", s.Name)
		}
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	t.Parallel()
	cfg := Defaults()
	for _, s := range cfg.Settings() {
		if s.Name == "" || len(s.Help) < 20 || !strings.HasSuffix(s.Help, ".") && !strings.HasSuffix(s.Help, "…") {
			t.Errorf("setting %q: help %q", s.Name, s.Help)
		}
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	t.Parallel()
	cfg := Defaults()
	cfg.ModelKey = "sk-ant-api03-x"
	for _, s := range cfg.Settings() {
		if strings.Contains(s.String(), "sk-ant") {
			t.Errorf("%s shows %s", s.Name, s)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte("listen: 127.0.0.1:1\nmodel-ids: {a: b}\n"))
	f.Add([]byte("a: &x b\nc: *x\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Add([]byte("--- !t\n...\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pairs, err := parseFile(data)
		if err != nil && pairs != nil {
			t.Error("both pairs and an error")
		}
	})
}
