package httpapi

import (
	"bytes"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
)

var update = flag.Bool("update", false, "rewrite docs/compatibility.md")

// TestCompatibility holds docs/compatibility.md to the route table.
func TestCompatibility(t *testing.T) {
	const file = "../docs/compatibility.md"
	want := compatibility(t)
	if *update {
		if err := os.MkdirAll("../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(want)); diff != "" {
		t.Errorf("%s is stale; run go test ./httpapi -run Compatibility -update\n%s", file, diff)
	}
}

type compatGroup struct {
	Name string
	Rows []compatRow
}

type compatRow struct{ Op, Path, Keys, Status string }

type compatData struct {
	Groups                  []*compatGroup
	Known, Offered          int
	Organization, Workspace string
}

func (d *compatData) Count(status string) (n int) {
	for _, g := range d.Groups {
		for _, r := range g.Rows {
			if r.Status == status {
				n++
			}
		}
	}
	return n
}

func compatibility(t *testing.T) []byte {
	t.Helper()
	d := &compatData{Organization: organizationID, Workspace: workspaceID}
	groups := map[string]*compatGroup{}
	for _, rt := range routes {
		name, _, _ := strings.Cut(rt.op, ".")
		g := groups[name]
		if g == nil {
			g = &compatGroup{Name: name}
			groups[name] = g
			d.Groups = append(d.Groups, g)
		}
		status := rt.status
		if rt.handle == nil {
			status = notYet
		}
		var keys []string
		for _, k := range rt.keys {
			keys = append(keys, map[api.KeyKind]string{
				api.KeyAPI: "API key", api.KeyEnvironment: "environment key", api.KeySession: "session token",
				api.KeyEdge: "edge key", api.KeyTunnels: "tunnels key", api.KeyTunnelToken: "tunnel token",
				"": "none",
			}[k])
		}
		path := strings.ReplaceAll(rt.path, "...}", "}")
		g.Rows = append(g.Rows, compatRow{rt.op, path, strings.Join(keys, ", "), string(status)})
		if counted(&rt) {
			d.Known++
			if rt.handle != nil {
				d.Offered++
			}
		}
	}
	tmpl, err := template.ParseFiles("compatibility.md.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tmpl.Execute(&out, d); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// counted reports whether rt belongs to the platform's own operations.
func counted(rt *route) bool {
	adjacent := strings.HasPrefix(rt.op, "messages.") || strings.HasPrefix(rt.op, "models.")
	return !adjacent && rt.status != ours
}

// notForAPIKeys begin the operations that no API key is good for: a worker's end of a
// shell and what its boxes are given, what an edge does, and what a workload shows its
// identity for.
var notForAPIKeys = []string{"environments.work.shells.", "environments.work.variables.", "edges.", "oauth."}

// The table must hold every known operation once: what is missing in it is missing
// in the document, and answers as if nobody had ever heard of it.
func TestRoutesAreWhole(t *testing.T) {
	t.Parallel()
	perNoun := map[string]int{}
	ops, paths := map[string]bool{}, map[string]bool{}
	for _, rt := range routes {
		if ops[rt.op] || paths[rt.path] {
			t.Errorf("%s: %s is in the table twice", rt.op, rt.path)
		}
		ops[rt.op], paths[rt.path] = true, true
		if counted(&rt) {
			noun, _, _ := strings.Cut(rt.op, ".")
			perNoun[noun]++
		}
		if rt.handle == nil {
			continue
		}
		if rt.status == "" || len(rt.keys) == 0 {
			t.Errorf("%s: a route with a handler needs a status and credentials", rt.op)
		}
		if !slices.Contains(rt.keys, api.KeyAPI) && !slices.ContainsFunc(notForAPIKeys, func(of string) bool { return strings.HasPrefix(rt.op, of) }) {
			t.Errorf("%s: an API key opens everything but what is named in notForAPIKeys", rt.op)
		}
	}
	// The inventory of the Go SDK 1.84.
	want := map[string]int{
		"agents": 6, "environments": 6 + 8, "sessions": 6 + 3 + 5 + 5, "vaults": 6 + 7, "oauth": 1,
		"memory_stores": 6 + 5 + 3, "deployments": 8, "deployment_runs": 2, "dreams": 5, "skills": 4 + 5,
		"files": 5, "user_profiles": 7, "tunnels": 6 + 4, "organizations": 6 + 5 + 5 + 5,
	}
	if diff := cmp.Diff(want, perNoun); diff != "" {
		t.Errorf("operations per noun (-want +got):\n%s", diff)
	}
}
