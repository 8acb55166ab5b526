package main_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The house is how the packages of this module stand to each other. ARCHITECTURE.md
// draws it; here it is held. Tests may import more than the packages they test: they
// play the other side.

// house says of each package which packages of ours it may import, and why no
// others. A new package gets a row.
var house = []row{
	{"api", nil,
		"api is the words that all others share; it knows nobody"},

	// Mechanisms know api, and nothing of each other.
	{"store", uses("api"),
		"store keeps rows; what they mean is control's business"},
	{"store/storetest", uses("api", "store"),
		"storetest is the contract of the store and of nothing else"},
	{"audit", nil,
		"audit must be verifiable with nothing but its file"},
	{"audit/sink", uses("audit"),
		"a second place for an audit record knows nothing of what is recorded"},
	{"model", nil,
		"model is a client of the Messages API; what is asked of a model is loop's business"},
	{"model/scripted", nil,
		"the scripted model is a far end: it shares no code with the client that talks to it"},
	{"telemetry", nil,
		"everybody is observed, and the observer depends on nobody"},
	{"docs", nil,
		"docs is text"},
	{"settings", nil,
		"settings reads files; what a setting means is for whose file it is"},
	{"tool", nil,
		"tool is the protocol between a worker and the agent in a box"},
	{"tool/agent", uses("tool"),
		"the agent runs in the box, where nothing else of ours may be"},
	{"tool/agent/boxagent", uses("tool/agent"),
		"the small executable in a box is the agent alone"},
	{"sandbox", nil,
		"sandbox says what a box is; the backends know it, not the other way round"},
	{"sandbox/agentbin", nil,
		"agentbin finds the executables that boxes are made of"},
	{"sandbox/cgroup", uses("sandbox"),
		"cgroup bounds whatever runs; it knows no backend"},
	{"sandbox/rootfs", uses("sandbox"),
		"rootfs makes what a box sees as its root; it knows no backend"},
	{"sandbox/netns", uses("sandbox"),
		"netns makes the ways out of a box; what may pass is netjail's business"},
	{"sandbox/workfolder", uses("sandbox"),
		"workfolder makes a session's folder ready for any box; it knows no backend"},
	{"sandbox/users", nil,
		"users of boxes are given out across backends; it knows none"},
	{"sandbox/cdi", uses("sandbox"),
		"cdi says what a device's name means; it knows no backend"},
	{"sandbox/launcher", uses("sandbox/gvisor/stage", "sandbox/landlock/cage", "sandbox/netns", "sandbox/ns/boxinit", "sandbox/oci/cradle"),
		"the small executable that boxes are started by"},
	{"sandbox/launcher/boxlauncher", uses("sandbox/launcher"),
		"the small executable is the launcher alone"},
	{"sandbox/gvisor", uses("sandbox", "sandbox/cdi", "sandbox/cgroup", "sandbox/gvisor/engine", "sandbox/gvisor/stage", "sandbox/netns", "sandbox/rootfs", "sandbox/workfolder"),
		"a backend makes boxes; what runs in them is not its business"},
	{"sandbox/gvisor/engine", nil,
		"the engine is gVisor; what is run on it is not its business"},
	{"sandbox/gvisor/engine/precompile", nil,
		"what makes the engine's filters is gVisor too"},
	{"sandbox/gvisor/engine/runsc", uses("sandbox/gvisor/engine"),
		"the executable is the engine alone"},
	{"sandbox/gvisor/stage", uses("sandbox", "sandbox/netns"),
		"stage makes what gVisor is started in, without gVisor"},
	{"sandbox/lockdown", nil,
		"lockdown takes rights from a thread; what a box is it does not know"},
	{"sandbox/ns", uses("sandbox", "sandbox/cdi", "sandbox/cgroup", "sandbox/lockdown", "sandbox/netns", "sandbox/ns/boxinit", "sandbox/rootfs", "sandbox/users", "sandbox/workfolder"),
		"a backend makes boxes; what runs in them is not its business"},
	{"sandbox/ns/boxinit", uses("sandbox/lockdown", "sandbox/netns"),
		"boxinit is a box's first process, which is told everything"},
	{"sandbox/oci", uses("sandbox", "sandbox/cdi", "sandbox/cgroup", "sandbox/netns", "sandbox/oci/cradle", "sandbox/rootfs", "sandbox/runtimes", "sandbox/seccomp", "sandbox/users", "sandbox/workfolder"),
		"a backend makes boxes; what runs in them is not its business"},
	{"sandbox/oci/cradle", uses("sandbox/netns"),
		"a cradle does what it is told; why is the backend's business"},
	{"sandbox/landlock", uses("sandbox", "sandbox/landlock/cage", "sandbox/lockdown", "sandbox/netns", "sandbox/none", "sandbox/workfolder"),
		"a backend makes boxes; this one's are those of none with fewer rights"},
	{"sandbox/landlock/cage", uses("sandbox/lockdown", "sandbox/netns"),
		"cage is what a process does to have fewer rights, which it is told"},
	{"sandbox/docker", uses("sandbox", "sandbox/cdi", "sandbox/cgroup", "sandbox/netns", "sandbox/rootfs", "sandbox/runtimes", "sandbox/seccomp", "sandbox/workfolder"),
		"a backend makes boxes; what runs in them is not its business"},
	{"sandbox/seccomp", nil,
		"seccomp is a list of system calls; it knows no backend"},
	{"sandbox/runtimes", nil,
		"runtimes knows what others have written, and nothing of ours"},
	{"sandbox/none", uses("sandbox"),
		"a backend makes boxes; what runs in them is not its business"},
	{"sandbox/leaks", uses("sandbox"),
		"leaks looks at the host alone"},
	{"sandbox/verify", uses("egress", "netjail", "sandbox", "sandbox/netns"),
		"verify attacks a box from inside, under a policy; it knows no backend"},
	{"sandbox/sandboxtest", uses("sandbox", "tool"),
		"sandboxtest is the contract of the backends: a box, and a tool called in it"},
	{"egress", nil,
		"egress is the policy of what may leave, for whoever asks"},
	{"netjail", uses("egress", "sandbox"),
		"netjail serves the ways out of a box; of a box it knows only those"},
	{"jwks", nil,
		"jwks has keys; whose to believe is for who asks"},
	{"workload", uses("api", "jwks"),
		"workload checks what an assertion says; which are to be believed it is told"},
	{"workload/issuertest", nil,
		"issuertest is a far end: it shares no code with what checks its tokens"},
	{"tunnel", uses("api"),
		"tunnel is the words and rules of both ends; it knows no plane"},
	{"tunnel/overquic", nil,
		"overquic is how QUIC is spoken; what is said is for the ends"},
	{"tunnel/edge", uses("api", "tunnel", "tunnel/overquic"),
		"an edge passes on what it cannot read; who may come is for its plane to say"},
	{"tunnel/edge/remote", uses("api", "client", "tunnel/edge"),
		"remote joins an edge to a plane, which it knows through the public API only"},
	{"tunnel/connect", uses("api", "tunnel", "tunnel/overquic"),
		"a connector carries streams to a gateway, and knows nothing of what is in them"},
	{"tunnel/gateway", uses("audit", "egress", "jwks", "settings", "telemetry", "tunnel"),
		"the gateway is the customer's end: it knows the plane only as whoever calls"},
	{"tunnel/dial", uses("api", "tunnel"),
		"a dialer goes where it is told that a host is; who may go there is the plane's business"},
	{"vault", nil,
		"vault seals what it is given; whose it is and where it is stored it does not know"},
	{"mcp", uses("api"),
		"mcp uses MCP servers; whose they are and what reaches them it is told"},
	{"client", uses("api"),
		"client sees the server only through its public API"},

	// Rules.
	{"control", uses("api", "audit", "mcp", "store", "tunnel", "vault", "workload"),
		"control is the rules: it knows nothing of HTTP, models or workers' insides; mcp is to try credentials with"},

	// Engines and faces.
	{"loop", uses("api", "control", "mcp", "model", "tool"),
		"loop turns events into model requests; of tools it knows what the model is told"},
	{"messages", uses("api", "mcp", "model"),
		"messages joins a model that knows nothing of MCP with servers; it keeps nothing"},
	{"httpapi", uses("api", "audit", "control", "messages", "model"),
		"httpapi has routes and no rules; it passes model requests through"},

	// The field.
	{"worker", uses("api", "audit", "client", "sandbox", "tool"),
		"a worker runs on the customer's side and sees the plane only through its public API"},

	// Assembly.
	{"field", uses("audit", "audit/sink", "egress", "netjail", "sandbox", "sandbox/cdi", "settings", "telemetry", "worker"),
		"field assembles the worker's side of what its file asks for; the plane is beyond its horizon"},
	{"cloud", uses("api", "egress", "field", "netjail", "sandbox"),
		"cloud is a field within the server's process: it is told what has work, and the rest goes through the public API"},
	{"daemon", uses("api", "audit", "audit/sink", "client", "control", "egress", "httpapi", "loop", "messages", "model", "model/scripted", "store", "telemetry", "tunnel", "tunnel/dial", "tunnel/edge", "tunnel/edge/remote", "vault"),
		"daemon assembles the plane; a worker beside it is cli's to start"},
	{"cli", uses("api", "audit", "audit/sink", "client", "cloud", "daemon", "docs", "field", "model", "model/scripted", "sandbox", "sandbox/agentbin", "sandbox/leaks", "sandbox/verify", "settings", "telemetry", "tool/agent", "tunnel", "tunnel/connect", "tunnel/edge", "tunnel/edge/remote", "tunnel/gateway", "worker", "vault"),
		"cli is a person's hands: it starts the parts, and talks to the plane as any client does"},
	{"", uses("cli", "sandbox", "sandbox/agentbin", "sandbox/docker", "sandbox/gvisor", "sandbox/landlock", "sandbox/launcher", "sandbox/none", "sandbox/ns", "sandbox/oci"),
		"main names the sandboxes of this build and calls cli"},

	// Nothing but tests.
	{"e2e", nil, "e2e drives the built binary"},
	{"bench", nil, "bench measures the assembled system"},
	{"bench/boxes", uses("cli", "egress", "netjail", "sandbox", "sandbox/agentbin", "sandbox/docker", "sandbox/gvisor", "sandbox/landlock", "sandbox/launcher", "sandbox/ns", "sandbox/oci", "tool"),
		"boxes measures the backends beside other people's"},
	{"bench/tunnel", uses("api", "tunnel", "tunnel/connect", "tunnel/dial", "tunnel/edge", "tunnel/gateway"),
		"tunnel measures the tunnel beside other ways to the same server"},
}

type row struct {
	name string // below the module; "" is the executable
	may  []string
	why  string
}

func uses(names ...string) []string { return names }

// The two shores never import each other, not even by way of a third. They meet in
// api, over the public HTTP API.
var (
	plane = []string{"control", "loop", "webhook", "httpapi", "console", "store"}
	field = []string{"worker", "field", "sandbox", "tool/agent", "tunnel/gateway"}
)

const module = "github.com/bailey-platform/bailey"

// A pkg is what `go list` says of a package of ours.
type pkg struct {
	ImportPath                         string
	Dir                                string
	GoFiles, TestGoFiles, XTestGoFiles []string
	IgnoredGoFiles                     []string // those of other build tags
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

func (p *pkg) name() string { return below(p.ImportPath) }

// below is an import path without the module's own.
func below(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func ours(importPath string) bool {
	return importPath == module || strings.HasPrefix(importPath, module+"/")
}

var packages = sync.OnceValues(func() ([]*pkg, error) {
	out, err := exec.Command("go", "list", "-json", "./...").Output()
	if err != nil {
		return nil, err
	}
	var all []*pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		if err := dec.Decode(p); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

func list(t *testing.T) []*pkg {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return all
}

func TestEveryPackageImportsOnlyWhatItsRowAllows(t *testing.T) {
	rows := map[string]row{}
	for _, r := range house {
		rows[r.name] = r
	}
	for _, p := range list(t) {
		r, ok := rows[p.name()]
		if !ok {
			t.Errorf("package %q has no row in the table of house_test.go: say there what of ours it may import, and why", p.name())
			continue
		}
		delete(rows, p.name())
		for _, i := range p.Imports {
			if ours(i) && !slices.Contains(r.may, below(i)) {
				t.Errorf("package %q imports %q, which its row does not allow: %s", p.name(), below(i), r.why)
			}
		}
	}
	for name := range rows {
		t.Errorf("the table has a row for %q, which is no package", name)
	}
}

func TestOneDoorOnlyControlAndDaemonImportTheStore(t *testing.T) {
	doors := []string{"control", "daemon", "store/storetest"}
	for _, p := range list(t) {
		if slices.Contains(p.Imports, module+"/store") && !slices.Contains(doors, p.name()) {
			t.Errorf("package %q imports store. Only control does, which knows the rules, and daemon, which opens it: ask control", p.name())
		}
	}
}

func TestTwoShoresNeverImportEachOther(t *testing.T) {
	on := func(shore []string, importPath string) bool {
		return ours(importPath) && slices.ContainsFunc(shore, func(s string) bool {
			name := below(importPath)
			return name == s || strings.HasPrefix(name, s+"/")
		})
	}
	for _, p := range list(t) {
		for _, dep := range p.Deps {
			if on(plane, p.ImportPath) && on(field, dep) || on(field, p.ImportPath) && on(plane, dep) {
				t.Errorf("package %q needs %q, which is on the other shore: plane and field share api and speak over the public HTTP API, even inside one process", p.name(), below(dep))
			}
		}
	}
}

func TestCleanWordsTheAPIPackageHasNoClockNoChanceAndNoGoroutine(t *testing.T) {
	for _, p := range list(t) {
		if p.name() != "api" {
			continue
		}
		for _, i := range p.Imports {
			if strings.Contains(strings.Split(i, "/")[0], ".") {
				t.Errorf("api imports %s; it may import the standard library alone, as everybody imports it", i)
			}
			if path.Base(i) == "rand" || path.Dir(i) == "math/rand" {
				t.Errorf("api imports %s; randomness is handed in, so that what api does can be repeated", i)
			}
		}
		for name, file := range parse(t, p.Dir, p.GoFiles) {
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s starts a goroutine; api is words", name)
				case *ast.SelectorExpr:
					clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
						t.Errorf("%s uses time.%s; times are handed in, so that what api does can be repeated", name, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

func TestEveryPackageHasOnePackageComment(t *testing.T) {
	for _, p := range list(t) {
		var commented []string
		for name, file := range parse(t, p.Dir, slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles, p.IgnoredGoFiles)) {
			if file.Doc == nil || strings.TrimSpace(file.Doc.Text()) == "" {
				continue
			}
			commented = append(commented, name)
			if text := file.Doc.Text(); file.Name.Name != "main" && !strings.HasPrefix(text, "Package "+file.Name.Name+" ") {
				t.Errorf("%s: the package comment must begin with %q", name, "Package "+file.Name.Name)
			}
		}
		if len(commented) != 1 {
			t.Errorf("package %q has %d package comments %v; it needs one, which says what it is for, what it must not know and where to start reading", p.name(), len(commented), commented)
		}
	}
}

func TestNothingHappensInInit(t *testing.T) {
	for _, p := range list(t) {
		for name, file := range parse(t, p.Dir, slices.Concat(p.GoFiles, p.IgnoredGoFiles)) {
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s has an init function; lists of parts are written out where they are used, and read there", name)
				}
			}
		}
	}
}

func TestNoPackageIsNamedForWhatItIsNot(t *testing.T) {
	for _, p := range list(t) {
		for _, element := range strings.Split(p.name(), "/") {
			switch element {
			case "internal", "pkg", "util", "utils", "common", "helper", "helpers", "misc":
				t.Errorf("package %q: %q says nothing about what is in it, or hides it; name a package after its subject", p.name(), element)
			}
		}
	}
}

// TestEveryDependencyHasItsReason compares what the code imports with
// docs/dependencies.md, where each module begins a line as "- `path`".
func TestEveryDependencyHasItsReason(t *testing.T) {
	var mod struct {
		Require []struct{ Path string }
	}
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err == nil {
		err = json.Unmarshal(out, &mod)
	}
	if err != nil {
		t.Fatalf("go mod edit: %v", err)
	}
	used := map[string]string{} // module to one of its users
	for _, p := range list(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			best := ""
			for _, m := range mod.Require {
				if (i == m.Path || strings.HasPrefix(i, m.Path+"/")) && len(m.Path) > len(best) {
					best = m.Path
				}
			}
			if best != "" {
				used[best] = p.name()
			}
		}
	}
	text, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^- `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		explained[m[1]] = true
	}
	for m, user := range used {
		if !explained[m] {
			t.Errorf("package %q imports %s, which docs/dependencies.md does not explain: one sentence on why it is better than code of our own", user, m)
		}
	}
	for m := range explained {
		if used[m] == "" {
			t.Errorf("docs/dependencies.md explains %s, which nothing imports", m)
		}
	}
}

// parse reads files of a directory, comments included, and names them by their path
// in the module.
func parse(t *testing.T, dir string, names []string) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	for _, name := range names {
		full := filepath.Join(dir, name)
		file, err := parser.ParseFile(token.NewFileSet(), full, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if root, err := os.Getwd(); err == nil {
			if rel, err := filepath.Rel(root, full); err == nil {
				full = rel
			}
		}
		files[full] = file
	}
	return files
}
