package field

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/egress"
)

var testBackends = []string{"gvisor", "ns", "none"}

// loadText loads a configuration from text.
func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "worker.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		return nil, err
	}
	c.setDefaults("gvisor")
	return c, c.Validate(testBackends)
}

// TestExample: the documented example means what it says.
func TestExample(t *testing.T) {
	t.Parallel()
	c, err := Load("../docs/worker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c.setDefaults("gvisor")
	if err := c.Validate(testBackends); err != nil {
		t.Fatal(err)
	}
	prod, exp := c.environment("env_01production"), c.environment("env_01experiments")
	if prod == nil || exp == nil {
		t.Fatalf("environments: %+v", c.Environments)
	}
	for _, tt := range []struct {
		name      string
		got, want any
	}{
		{"production backend", prod.Sandbox.Backend, "gvisor"},
		{"production sessions", prod.Sessions.Max, 16},
		{"production rules", len(prod.Network.Rules), 5},
		{"production mode", prod.Network.Mode, egress.Limited},
		{"production credential", prod.Credentials[0].From.File, "/etc/bailey/github-token"},
		{"production credential's life", prod.Credentials[0].Refresh, Duration(5 * time.Minute)},
		{"production memory", prod.Sandbox.Limits.Memory, Size(2 << 30)},
		{"audit retention", time.Duration(c.Audit.Retention), 365 * 24 * time.Hour},
		{"experiments backend", exp.Sandbox.Backend, "ns"},
		{"experiments isolation", exp.Sandbox.Require.Isolation, "namespaces"},
		{"experiments requirement from above", exp.Sandbox.Require.Freeze, true},
		{"experiments sessions", exp.Sessions.Max, 4},
		{"experiments tool timeout from above", exp.Sessions.ToolTimeout, Duration(2 * time.Minute)},
		{"experiments network", exp.Network.none(), true},
		{"experiments credentials", len(exp.Credentials), 0},
		{"experiments variables from above", exp.Sandbox.Env["TZ"], "Europe/Berlin"},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// TestExampleNamesEverySetting: what can be set is in the example.
func TestExampleNamesEverySetting(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/worker.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range settingNames(Config{}) {
		if !strings.Contains(string(data), key+":") {
			t.Errorf("docs/worker.yaml does not show %s", key)
		}
	}
}

// TestSettingsHaveOneSpelling: words in small letters, with dashes between them.
func TestSettingsHaveOneSpelling(t *testing.T) {
	t.Parallel()
	one := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	for _, key := range settingNames(Config{}) {
		if !one.MatchString(key) {
			t.Errorf("the setting %q is not spelled as all others are", key)
		}
	}
}

const minimal = "environments:\n- {id: env_1, key-file: key}\n"

func TestLoad(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		want       []string // of the error; none for a good file
	}{
		{"the least there can be", minimal, nil},
		{"nothing", "", []string{"list at least one"}},
		{"comments", "# nothing\n", []string{"list at least one"}},
		{"a list", "- a\n", []string{"line 1: must be a list of"}},
		{"two documents", minimal + "---\n" + minimal, []string{"more than one document"}},
		{"no yaml", "a: [\n", []string{"line"}},
		{"an unknown setting", minimal + "sandbx: {}\n", []string{`line 3: there is no setting "sandbx"`}},
		{"an unknown setting below", minimal + "sandbox:\n  imaeg: x\n", []string{`line 4: there is no setting "imaeg"`}},
		{"an unknown setting of an environment", "environments:\n- id: env_1\n  key-file: k\n  pool: {sizee: 1}\n", []string{`line 4: there is no setting "sizee"`}},
		{"two at once", minimal + "a: 1\nb: 2\n", []string{"line 3", "line 4"}},
		{"a secret", "environments:\n- id: env_1\n  key: sk-ant-oat01-x\n", []string{"line 3", "a secret is not written into this file"}},
		{"a credential's value", minimal + "credentials:\n- name: A\n  value: hunter2hunter2\n", []string{"a secret is not written"}},
		{"a setting twice", minimal + "pool: {size: 1}\npool: {size: 2}\n", []string{"line 4", "already"}},
		{"a size", minimal + "disk-reserve: lots\n", []string{`line 3: "lots" is not a size`}},
		{"a time without unit", minimal + "drain: 30\n", []string{`line 3: "30" is not a time`}},
		{"a time that is a list", minimal + "drain: [1s]\n", []string{"line 3: must be a single value"}},
		{"no key", "environments:\n- id: env_1\n", []string{"line 2: environment env_1: it has no key"}},
		{"two keys", "environments:\n- {id: env_1, key-file: k, key-env: K}\n", []string{"give the key in one way"}},
		{"no id", "environments:\n- {key-file: k}\n", []string{"environment 1 of the list: it has no id"}},
		{"an id that is a path", "environments:\n- {id: ../x, key-file: k}\n", []string{"is not an environment's id"}},
		{"the same twice", "environments:\n- {id: env_1, key-file: k}\n- {id: env_1, key-file: k}\n", []string{"listed twice"}},
		{"an unknown backend", minimal + "sandbox: {backend: tent}\n", []string{`no backend "tent"`, "gvisor, ns, none"}},
		{"an unknown fallback", minimal + "sandbox: {fallback: [tent]}\n", []string{`no backend "tent"`}},
		{"an unknown isolation", minimal + "sandbox: {require: {isolation: strong}}\n", []string{"sandbox.require.isolation"}},
		{"too little memory", minimal + "sandbox: {limits: {memory: 1MiB}}\n", []string{"sandbox.limits", "64 MiB"}},
		{"no end of life", minimal + "sandbox: {limits: {lifetime: never}}\n", []string{"lifetime cannot be never"}},
		{"a negative pool", minimal + "pool: {size: -1}\n", []string{"worker.yaml: line 3: environment env_1: pool.size"}},
		{"a negative pool of one", "environments:\n- id: env_1\n  key-file: k\n  pool:\n    size: -1\n", []string{"worker.yaml: line 5: environment env_1: pool.size"}},
		{"presets that are a text", minimal + "network:\n  mode: limited\n  presets: package-managers\n", []string{"worker.yaml: line 5: must be a list, such as [a, b], and is a text"}},
		{"a bad address", minimal + "server: {base-url: bailey.example.org}\n", []string{"line 3: server.base-url"}},
		{"an unknown sink", minimal + "audit: {sinks: [carrier-pigeon:]}\n", []string{"audit.sinks"}},
		{"an unknown rule", minimal + "network: {mode: limited, rules: [{host: x}]}\n", []string{`there is no setting "host"`}},
		{"another spelling", minimal + "network: {mode: limited, rules: [{hosts: [a.example], protocol: tls, allow_ech: true}]}\n", []string{`there is no setting "allow_ech"`}},
		{"a bad host", minimal + "network: {mode: limited, rules: [{hosts: ['*']}]}\n", []string{"network policy"}},
		{"rules without a mode", minimal + "network: {rules: [{hosts: [a.example]}]}\n", []string{"its mode is none", "write mode: limited"}},
		{"an unknown preset", minimal + "network: {mode: limited, presets: [everything]}\n", []string{"everything"}},
		{"credentials without a network", minimal + "credentials: [{name: A, hosts: [a.example], from: {env: A}}]\n", []string{"no use for them"}},
		{"a credential from nowhere", minimal + "network: {mode: limited}\ncredentials: [{name: A, hosts: [a.example]}]\n", []string{`credential "A"`, "one of env, file and command"}},
		{"a credential for no host", minimal + "network: {mode: limited}\ncredentials: [{name: A, from: {env: A}}]\n", []string{"needs hosts"}},
		{"a credential in a strange place", minimal + "network: {mode: limited}\ncredentials: [{name: A, hosts: [a.example], where: [path], from: {env: A}}]\n", []string{"is not header, body or query"}},
		{"a relative command", minimal + "network: {mode: limited}\ncredentials: [{name: A, hosts: [a.example], from: {command: [pass]}}]\n", []string{"no absolute path"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := loadText(t, tt.text)
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want …%s…", err, want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

func TestPathsCountFromTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "worker.yaml")
	text := "data: d\nwork-dir: /w\naudit: {sinks: ['file:rel.jsonl?required=true', 'syslog:/dev/log', 'file:/abs.jsonl', 'syslog+tls://h:1?ca=ca.pem']}\nsandbox: {image: ./image.tar}\ncredentials: [{name: A, from: {file: secret}}]\nenvironments:\n- {id: env_1, key-file: key}\n- {id: env_2, key-file: /k, sandbox: {image: debian}}\n- {id: env_3, key-file: /k, sandbox: {image: images/there.tar}}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(filepath.Join(dir, "images", "there.tar"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Data, c.WorkDir, c.Environments[0].KeyFile, c.Environments[1].KeyFile, c.Environments[0].Sandbox.Image, c.Environments[1].Sandbox.Image, c.Environments[0].Credentials[0].From.File}
	got = append(got, c.Environments[2].Sandbox.Image)
	got = append(got, c.Audit.Sinks...)
	want := []string{dir + "/d", "/w", dir + "/key", "/k", dir + "/image.tar", "debian", dir + "/secret", dir + "/images/there.tar",
		"file:" + dir + "/rel.jsonl?required=true", "syslog:/dev/log", "file:/abs.jsonl", "syslog+tls://h:1?ca=" + url.QueryEscape(dir+"/ca.pem")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzParse: no file, however strange, brings the reader down.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../docs/worker.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(example), minimal, "", "a: &a [*a]", "environments: &e\n- id: x\n", "<<: {a: 1}", "environments: [1, [2], {id: 3}]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, problems := parse(data)
		if (c == nil) != (len(problems) > 0) {
			t.Fatalf("config %v with problems %q", c, problems)
		}
		if c != nil {
			c.setDefaults("gvisor")
			_ = c.Validate(testBackends)
		}
	})
}
