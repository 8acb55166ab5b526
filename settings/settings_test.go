package settings

import (
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type example struct {
	Name string   `yaml:"name"`
	Wait Duration `yaml:"wait"`
	Room Size     `yaml:"room"`
	All  []string `yaml:"all"`
	In   struct {
		Deep int `yaml:"deep"`
	} `yaml:"in"`
}

func TestParse(t *testing.T) {
	t.Parallel()
	var got example
	root, problems := Parse([]byte("name: x\nwait: 90d\nroom: 2MiB\nin: {deep: 3}\n"), &got, "docs/x.yaml")
	if root == nil || problems != nil || got.Name != "x" || time.Duration(got.Wait) != 90*24*time.Hour || got.Room != 2<<20 || got.In.Deep != 3 {
		t.Errorf("%+v, %q", got, problems)
	}
	for text, want := range map[string]string{
		"nam: x":             `line 1: there is no setting "nam" here; docs/x.yaml has them all`,
		"name: x\ntoken: y":  `line 2: "token": a secret is not written into this file`,
		"- name: x":          "line 1: must be a list of `name: value` lines",
		"name: x\n---\na: b": "more than one document",
		"wait: soon":         `line 1: "soon" is not a time`,
		"room: [1]":          "line 1: must be a single value",
		"room: -1":           `line 1: "-1" is not a size`,
		"name: [":            "line 1",
		"name: x\nname: y":   `already defined`,
		"in: yes please":     "line 1: must be `name: value` lines, and is a text",
		"in: [1]":            "line 1: must not be a list",
		"in: {deep: hunter}": "line 1: must be a whole number, and is a text",
		"name: {a: b}":       "line 1: must be a single value, and is `name: value` lines",
		"all: hunter":        "line 1: must be a list, such as [a, b], and is a text",
	} {
		root, problems := Parse([]byte(text), new(example), "docs/x.yaml")
		if root != nil && len(problems) == 0 || !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("%q: problems %q, want %q", text, problems, want)
		}
	}
	for setting, want := range map[string]int{"wait": 2, "in": 4, "in.deep": 5, "in.other": 4, "other": 0, "other.deep": 0} {
		root, _ := Parse([]byte("name: x\nwait: 90d\nroom: 2MiB\nin:\n  deep: 3\n"), new(example), "")
		if n := Line(root, setting); n != want {
			t.Errorf("%s: line %d, want %d", setting, n, want)
		}
	}
	for _, text := range []string{"", "# nothing\n", "~"} {
		if root, problems := Parse([]byte(text), new(example), ""); root != nil || problems != nil {
			t.Errorf("%q: %v, %q", text, root, problems)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("name: x\nwait: never\n")
	f.Add("in: &a {deep: 1}\nname: *a")
	f.Fuzz(func(t *testing.T, text string) {
		if root, problems := Parse([]byte(text), new(example), ""); root != nil && len(problems) > 0 {
			t.Errorf("a document and problems %q", problems)
		}
	})
}

// The parser's own words for a tab say nothing to who typed one.
func TestTab(t *testing.T) {
	t.Parallel()
	_, problems := Parse([]byte("in:\n\tdeep: 1\n"), new(example), "")
	if len(problems) != 1 || !strings.Contains(problems[0], "line 2: ") || !strings.Contains(problems[0], "a tab?") {
		t.Errorf("problems = %q", problems)
	}
}

func TestUnknown(t *testing.T) {
	t.Parallel()
	var doc yaml.Node
	text := "name: x\nin:\n  deep: 1\n  shallow: 2\nlist:\n- name: y\n- nam: z\nwait: 3s\nwit: 4s\n"
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	err := Unknown(doc.Content[0], struct {
		Example example    `yaml:",inline"`
		List    []*example `yaml:"list"`
	}{})
	got := strings.Join(Problems(err, "docs/x.yaml"), "\n")
	for _, want := range []string{`line 4: there is no setting "shallow"`, `line 7: there is no setting "nam"`, `line 9: there is no setting "wit"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if n := strings.Count(got, "\n"); n != 2 {
		t.Errorf("%d more problems than there are: %q", n-2, got)
	}
}
