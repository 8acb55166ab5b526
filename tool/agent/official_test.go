package agent_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/tools/agenttoolset"
	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool/agent"
)

// What the model reads is what the tools of the official SDK would have said, asked the
// same of the same files in the same order.
func TestOfficialToolsSayTheSame(t *testing.T) {
	t.Setenv("PATH", withoutRipgrep(t)) // whose order is not fixed
	type ask struct{ tool, input string }
	var asks []ask
	add := func(tool string, inputs ...string) {
		for _, input := range inputs {
			asks = append(asks, ask{tool, input})
		}
	}
	add("bash", `{"command":"echo hi"}`, `{"command":"true"}`, `{"command":"echo a; echo b >&2; false"}`, `{"command":"exit 3"}`,
		`{"command":"export A=5; cd sub"}`, `{"command":"echo $A; pwd"}`, `{"restart":true}`, `{"restart":true,"command":"echo $A; pwd"}`,
		`{"restart":"true"}`, `{}`, `null`, `{"command":null}`, `{"command":5}`, `{"command":true}`, `{"command":"echo x","timeout_ms":"1000"}`,
		`{"command":"echo x","timeout_ms":-1}`, `{"command":"echo x","timeout_ms":1e3}`, `{"command":"cat; read x; echo $?"}`,
		`{"command":"printf '\\033[31mred\\033[0m\\033[2K \\033]0;t\\007\\r\\nx\\ry'"}`, `{"command":"printf '\\n\\n\\n  a\\n\\n'"}`,
		`{"command":"echo '!!' \"!x\" a\tb"}`, `{"command":"cat <<'END'\n\tindented $x\nEND"}`, `{"command":"f() { echo in f $1; }; alias g='f 2'"}`,
		`{"command":"f 1; g"}`, `{"command":"{ sleep 0 & } 2>/dev/null; wait; echo done"}`, `{"command":"seq 1 5 | while read x; do echo $x; done"}`,
		`{"command":"kill -9 $$"}`, `{"command":"echo back; set -o | grep -E 'history|monitor|histexpand'"}`, `{"command":"no-such-program"}`,
		`{"command":"cd /nowhere"}`, `{"command":"(exit 300)"}`, `{"command":"set -e; false"}`, `{"command":"echo after"}`,
		`{"command":"tty; test -t 1 && echo terminal; echo $TERM $HISTFILE $PS1"}`, `{"command":"printf '%s' 'no newline'"}`,
		`{"command":"echo é ü 漢 \\\\ \\\"quoted\\\""}`, `{"command":"trap 'echo bye' EXIT; exec true"}`,
		`{"command":"head -c 250000 /dev/zero | tr '\\0' x | fold -w 99; echo end","timeout_ms":10000}`)
	add("read", `{"file_path":"lines"}`, `{"file_path":"./sub/../lines"}`, `{"file_path":"none"}`, `{"file_path":"lines/x"}`, `{"file_path":"sub"}`,
		`{"file_path":"none/x"}`, `{"file_path":"link"}`, `{"file_path":"out/passwd"}`, `{"file_path":"loop"}`, `{"file_path":"dangling"}`,
		`{"file_path":"/etc/passwd"}`, `{"file_path":"DIR/lines"}`, `{"file_path":""}`, `{}`, `{"file_path":7}`, `{"file_path":"big"}`,
		`{"file_path":"big","view_range":[1,2]}`, `{"file_path":"big","view_range":[1,-1]}`, `{"file_path":"big","view_range":[2,2]}`,
		`{"file_path":"long","view_range":[1,1]}`, `{"file_path":"lines","view_range":[1]}`, `{"file_path":"lines","view_range":[]}`,
		`{"file_path":"lines","view_range":null}`, `{"file_path":"lines","view_range":["2",3]}`, `{"file_path":"empty","view_range":[1,1]}`,
		`{"file_path":"allowed/../../x"}`, `{"file_path":"../readonly/f"}`, `{"file_path":"../other"}`, `{"file_path":"closed"}`, `{"file_path":"`+strings.Repeat("n", 300)+`"}`)
	for from := -1; from <= 6; from++ {
		for to := -1; to <= 6; to++ {
			for _, file := range []string{"lines", "unended"} {
				add("read", fmt.Sprintf(`{"file_path":%q,"view_range":[%d,%d]}`, file, from, to))
			}
		}
	}
	add("write", `{"file_path":"w/x/y","content":"one"}`, `{"file_path":"w/x/y","content":"two"}`, `{"file_path":"w","content":"x"}`, `{"file_path":"lines/x","content":"x"}`,
		`{"file_path":"dangling","content":"x"}`, `{"file_path":"../readonly/f","content":"x"}`, `{"file_path":"out/x","content":"x"}`, `{"file_path":"","content":"x"}`,
		`{"file_path":"n","content":5}`, `{"file_path":"e"}`, `{}`, `{"file_path":"link","content":"by a link"}`, `{"file_path":"program","content":"#!/bin/sh\n"}`)
	add("edit", `{"file_path":"w/x/y","old_string":"w","new_string":"h"}`, `{"file_path":"dup","old_string":"a","new_string":"b"}`,
		`{"file_path":"dup","old_string":"a","new_string":"b","replace_all":true}`, `{"file_path":"dup","old_string":"zz","new_string":"b"}`,
		`{"file_path":"dup","old_string":"","new_string":"b"}`, `{"file_path":"none","old_string":"a","new_string":"b"}`, `{"old_string":"a","new_string":"b"}`,
		`{"file_path":"sub","old_string":"a","new_string":"b"}`, `{"file_path":"big","old_string":"a","new_string":"b"}`,
		`{"file_path":"../readonly/f","old_string":"a","new_string":"b"}`, `{"file_path":"dup","old_string":"b"}`, `{"file_path":"lines","old_string":2,"new_string":"two"}`)
	for _, pattern := range []string{"*", "**", "**/*", "*.go", "**/*.go", "sub/**", "sub/**/deep.go", "**/sub/*", "s?b", "[ls]*", "[", "sub/", "/etc/*", "../*", "a/../b", "**/**/x", "", "link", "sub/**/**/*"} {
		add("glob", fmt.Sprintf(`{"pattern":%q}`, pattern), fmt.Sprintf(`{"pattern":%q,"path":"sub"}`, pattern))
	}
	add("glob", `{"pattern":"*","path":"none"}`, `{"pattern":"*","path":"lines"}`, `{"pattern":"*","path":"../other"}`, `{"pattern":"*","path":"../readonly"}`)
	add("grep", `{"pattern":"needle"}`, `{"pattern":"^$"}`, `{"pattern":"l[0-9]$"}`, `{"pattern":"("}`, `{"pattern":""}`, `{}`, `{"pattern":"needle","path":"sub"}`,
		`{"pattern":"l","path":"lines"}`, `{"pattern":"x","path":"../other"}`, `{"pattern":"x","path":"none"}`, `{"pattern":"root","path":"link"}`, `{"pattern":"y"}`)
	// And what nobody thought of.
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		part := func(of ...string) string { return of[random.IntN(len(of))] }
		var pattern []string
		for range 1 + random.IntN(5) {
			pattern = append(pattern, part("**", "*", "s*", "sub", "deep.go", "d??p*", "inner", "[a-m]*"))
		}
		add("glob", fmt.Sprintf(`{"pattern":%q}`, strings.Join(pattern, "/")))
		add("read", fmt.Sprintf(`{"file_path":%q}`, part("", "/", "DIR/", "../", "sub/")+part("lines", "link", "..", "sub", "out", "dangling", "up")+part("", "/", "/..", "/lines", "/../lines")))
	}

	ours, theirs := sameFiles(t), sameFiles(t)
	client := startServer(t, agent.Server{Workdir: ours + "/work", AllowedRoots: []string{ours + "/readonly"}, ReadOnlyRoots: []string{ours + "/readonly"}})
	official := agenttoolset.BetaAgentToolset20260401(&agenttoolset.AgentToolContext{
		Workdir: theirs + "/work", AllowedRoots: []string{theirs + "/readonly"}, ReadOnlyRoots: []string{theirs + "/readonly"}})
	defer agenttoolset.CloseAll(official)
	for _, ask := range asks {
		got := call(t, client, ask.tool, strings.ReplaceAll(ask.input, "DIR", ours+"/work"))
		said := strings.ReplaceAll(textOf(t, got), ours, "")
		var want string
		var failed bool
		for _, tool := range official {
			if tool.Name() != ask.tool {
				continue
			}
			input := strings.ReplaceAll(ask.input, "DIR", theirs+"/work")
			if input == "" || input == "null" {
				input = "{}"
			}
			blocks, err := tool.Execute(t.Context(), json.RawMessage(input))
			if failed = err != nil; failed {
				want = err.Error()
			} else {
				want = blocks[0].OfText.Text
			}
			if want == "" {
				want = "(no output)"
			}
		}
		want = strings.ReplaceAll(want, theirs, "")
		if ask.tool == "glob" { // the order is by times, and some of these are now
			said, want = sorted(said), sorted(want)
		}
		if !strings.HasPrefix(want, "[output truncated]") { // where it begins is chance
			if diff := cmp.Diff(want, said); diff != "" || failed != got.IsError {
				t.Errorf("%s %s: failed is %t, want %t\n%s", ask.tool, ask.input, got.IsError, failed, diff)
			}
		} else if tail := want[len(want)-90_000:]; !strings.HasPrefix(said, "[output truncated]") || !strings.HasSuffix(said, tail) {
			t.Errorf("%s %s: %.100s … %.100s", ask.tool, ask.input, said, said[max(0, len(said)-100):])
		}
	}
	if diff := cmp.Diff(contents(t, theirs), contents(t, ours)); diff != "" {
		t.Errorf("the files: %s", diff)
	}
}

func sorted(lines string) string {
	list := strings.Split(lines, "\n")
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// withoutRipgrep is PATH with none.
func withoutRipgrep(t *testing.T) string {
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, _ := os.ReadDir(from)
		for _, entry := range entries {
			if entry.Name() != "rg" {
				_ = os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(dir, entry.Name())) // the first counts
			}
		}
	}
	return dir
}

// sameFiles makes the same files anew, in a directory that no link leads to.
func sameFiles(t *testing.T) string {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1_700_000_000, 0)
	for i, f := range []struct{ name, content string }{
		{"work/lines", "l1\nl2\nl3\nl4\n"}, {"work/unended", "l1\nl2\nl3"}, {"work/empty", ""}, {"work/dup", "a a a"},
		{"work/big", strings.Repeat("needle y\n", 40_000)}, {"work/long", strings.Repeat("x", 300_000)}, {"work/sub/deep.go", "package needle\n"},
		{"work/sub/inner/deep.go", "x"}, {"work/sub/inner/s/x.go", "x"}, {"work/binary", "needle\x00"}, {"work/.git/config", "needle"},
		{"work/node_modules/x", "needle"}, {"work/.hidden", "needle"}, {"work/invalid", "needle \xff\n"}, {"readonly/f", "needle a"}, {"other", "x"},
		{"work/program", "#!/bin/bash\n"},
	} {
		name := filepath.Join(dir, f.name)
		writeFile(t, name, f.content)
		if err := os.Chtimes(name, when, when.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir+"/work/program", 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "lines", "out": "/etc", "loop": "loop", "dangling": "../outside", "up": "sub/.."} {
		if err := os.Symlink(target, filepath.Join(dir, "work", link)); err != nil {
			t.Fatal(err)
		}
	}
	// Directories last, as what is made in them changes them; links have no time of theirs to set.
	for i, name := range []string{"work/sub/inner/s", "work/sub/inner", "work/sub", "work/.git", "work/node_modules", "work"} {
		if err := os.Chtimes(filepath.Join(dir, name), when, when.Add(time.Duration(100+i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// contents are the files below a directory with their modes.
func contents(t *testing.T, dir string) map[string]string {
	found := make(map[string]string)
	err := filepath.WalkDir(dir, func(name string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var data []byte
		if info.Mode().IsRegular() {
			data, err = os.ReadFile(name)
		}
		found[strings.TrimPrefix(name, dir)] = fmt.Sprintf("%v %s", info.Mode(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
