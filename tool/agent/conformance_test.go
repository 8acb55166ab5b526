package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The answers of the official Go worker, call by call in one session.
func TestConformance(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"lines.txt":    "l1\nl2\nl3\n",
		"dup.txt":      "a a a",
		"big.txt":      strings.Repeat("x", 300<<10),
		"empty.txt":    "",
		"raw.bin":      "ok\xff\xfe",
		"sub/deep.go":  "package deep\n",
		"sub/other.md": "needle here\n",
	} {
		writeFile(t, filepath.Join(dir, name), content)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	// Newest first is by time of change.
	now := time.Now()
	for i, name := range []string{"sub/deep.go", "sub/other.md"} {
		if err := os.Chtimes(filepath.Join(dir, name), now, now.Add(time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, dir)

	const (
		equal = iota
		prefix
		suffix
		contains
	)
	for _, step := range []struct {
		name, tool, input string
		how               int
		want              string
		failed            bool
	}{
		{name: "echo", tool: "bash", input: `{"command":"echo hi"}`, want: "hi\n\n"},
		{name: "no output", tool: "bash", input: `{"command":"true"}`, want: "(no output)"},
		{name: "exit code", tool: "bash", input: `{"command":"echo hi; false"}`, want: "hi\n\n\nexit code: 1", failed: true},
		{name: "state is set", tool: "bash", input: `{"command":"export A=5; cd /tmp"}`, want: "(no output)"},
		{name: "state is kept", tool: "bash", input: `{"command":"echo $A $PWD"}`, want: "5 /tmp\n\n"},
		{name: "timeout", tool: "bash", input: `{"command":"echo partial; sleep 60","timeout_ms":1000}`,
			want: "partial\n\n[timed out]\nsession restarted after timeout", failed: true},
		{name: "fresh after a timeout", tool: "bash", input: `{"command":"echo \"[$A]\" $PWD"}`, want: "[] " + real + "\n\n"},
		{name: "restart", tool: "bash", input: `{"restart":true}`, want: "bash session restarted"},
		{name: "restart and run", tool: "bash", input: `{"restart":true,"command":"echo new"}`, want: "new\n\n"},
		// These the official worker learns of when the command's time is over.
		{name: "nonsense", tool: "bash", input: `{"command":"echo ("}`, how: suffix, want: "\n\n\nexit code: 2", failed: true},
		{name: "only a comment", tool: "bash", input: `{"command":"# nothing"}`, how: suffix, want: "\n\n\nexit code: 2", failed: true},
		{name: "no command", tool: "bash", input: `{}`, want: "bash: command is required", failed: true},
		{name: "exit", tool: "bash", input: `{"command":"exit 3"}`, want: "bash: bash session terminated", failed: true},
		{name: "fresh after exit", tool: "bash", input: `{"command":"echo back"}`, want: "back\n\n"},
		{name: "flood is cut", tool: "bash", input: `{"command":"head -c 300000 /dev/zero | tr '\\0' x"}`,
			how: prefix, want: "[output truncated]\nxxx"},
		{name: "background", tool: "bash", input: `{"command":"sleep 100 & echo bg"}`, how: contains, want: "bg\n"},
		{name: "stdin is empty", tool: "bash", input: `{"command":"cat"}`, want: "(no output)"},
		{name: "colours", tool: "bash", input: `{"command":"printf '\\033[31mred\\033[0m\\r\\n'"}`, want: "red\n\n"},

		{name: "read", tool: "read", input: `{"file_path":"lines.txt"}`, want: "l1\nl2\nl3\n"},
		{name: "read absolute", tool: "read", input: `{"file_path":"` + real + `/lines.txt"}`, want: "l1\nl2\nl3\n"},
		{name: "read empty", tool: "read", input: `{"file_path":"empty.txt"}`, want: "(no output)"},
		{name: "read missing", tool: "read", input: `{"file_path":"nope"}`, want: "read nope: no such file or directory", failed: true},
		{name: "read large", tool: "read", input: `{"file_path":"big.txt"}`,
			want: "read: big.txt is 307200 bytes, exceeds 262144-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].", failed: true},
		{name: "read binary", tool: "read", input: `{"file_path":"raw.bin"}`, want: "ok\ufffd\ufffd"},
		{name: "read directory", tool: "read", input: `{"file_path":"."}`, want: "read: . is not a regular file", failed: true},
		{name: "read a line", tool: "read", input: `{"file_path":"lines.txt","view_range":[2,2]}`, want: "l2"},
		{name: "read to the end", tool: "read", input: `{"file_path":"lines.txt","view_range":[2,-1]}`, want: "l2\nl3\n"},
		{name: "read past the end", tool: "read", input: `{"file_path":"lines.txt","view_range":[9,12]}`, want: "(no output)"},
		{name: "read reversed", tool: "read", input: `{"file_path":"lines.txt","view_range":[3,2]}`, want: "(no output)"},
		{name: "read through a link out", tool: "read", input: `{"file_path":"out/passwd"}`,
			want: `read: path "out/passwd" is outside the session's working directory`, failed: true},
		{name: "read absolute outside", tool: "read", input: `{"file_path":"/etc/passwd"}`,
			want: `read: path "/etc/passwd" is outside the session's working directory`, failed: true},

		{name: "write", tool: "write", input: `{"file_path":"new/dir/f.txt","content":"hello"}`, want: "wrote 5 bytes to new/dir/f.txt"},
		{name: "edit", tool: "edit", input: `{"file_path":"new/dir/f.txt","old_string":"ell","new_string":"ipp"}`,
			want: "edited new/dir/f.txt (1 replacement(s))"},
		{name: "edited", tool: "read", input: `{"file_path":"new/dir/f.txt"}`, want: "hippo"},
		{name: "edit twice there", tool: "edit", input: `{"file_path":"dup.txt","old_string":"a","new_string":"b"}`,
			want: "edit: old_string appears 3 times in dup.txt (must be unique)", failed: true},
		{name: "edit all", tool: "edit", input: `{"file_path":"dup.txt","old_string":"a","new_string":"b","replace_all":true}`,
			want: "edited dup.txt (3 replacement(s))"},
		{name: "edit not there", tool: "edit", input: `{"file_path":"dup.txt","old_string":"z","new_string":"b"}`,
			want: "edit: old_string not found in dup.txt", failed: true},
		{name: "edit nothing", tool: "edit", input: `{"file_path":"dup.txt","old_string":"","new_string":"b"}`,
			want: "edit: old_string is required", failed: true},

		{name: "glob", tool: "glob", input: `{"pattern":"sub/*"}`, want: real + "/sub/other.md\n" + real + "/sub/deep.go"},
		{name: "glob directories", tool: "glob", input: `{"pattern":"s*"}`, want: real + "/sub"},
		{name: "glob nothing", tool: "glob", input: `{"pattern":"*.zig"}`, want: "no matches"},
		{name: "glob absolute", tool: "glob", input: `{"pattern":"/etc/*"}`, how: prefix, want: "glob: absolute pattern not permitted", failed: true},
		{name: "glob upwards", tool: "glob", input: `{"pattern":"../*"}`, how: prefix, want: `glob: pattern "../*" must not contain`, failed: true},
		{name: "grep", tool: "grep", input: `{"pattern":"needle"}`, how: contains, want: real + "/sub/other.md:1:needle here"},
		{name: "grep nothing", tool: "grep", input: `{"pattern":"n0thing"}`, want: "no matches"},
		{name: "grep nonsense", tool: "grep", input: `{"pattern":"("}`, how: prefix, want: "grep: ", failed: true},
	} {
		got := call(t, client, step.tool, step.input)
		text := textOf(t, got)
		ok := map[int]bool{
			equal:    text == step.want,
			prefix:   strings.HasPrefix(text, step.want),
			suffix:   strings.HasSuffix(text, step.want),
			contains: strings.Contains(text, step.want),
		}[step.how]
		if !ok {
			t.Errorf("%s: %s %s:\n%s", step.name, step.tool, step.input, cmp.Diff(step.want, text))
		}
		if got.IsError != step.failed {
			t.Errorf("%s: %s %s: is_error %t, want %t", step.name, step.tool, step.input, got.IsError, step.failed)
		}
	}
}
