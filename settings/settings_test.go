package settings

import (
	"strings"
	"testing"
	"time"
)

type example struct {
	Name string   `yaml:"name"`
	Wait Duration `yaml:"wait"`
	Room Size     `yaml:"room"`
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
	} {
		root, problems := Parse([]byte(text), new(example), "docs/x.yaml")
		if root != nil && len(problems) == 0 || !strings.Contains(strings.Join(problems, "\n"), want) {
			t.Errorf("%q: problems %q, want %q", text, problems, want)
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
