package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
	"github.com/bailey-platform/bailey/tool/agent"
)

// The test binary is its own agent where a test needs one in a process of its own.
func TestMain(m *testing.M) {
	os.Setenv("HOME", "/nonexistent") // shells are not to begin with what whoever runs the tests has in theirs
	if dir := os.Getenv("AGENT_TEST_WORKDIR"); dir != "" {
		err := agent.Serve(context.Background(), agent.Server{Workdir: dir, Adopt: true}, os.Stdin, os.Stdout)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start serves dir in this process and returns a client of it.
func start(t *testing.T, dir string) *tool.Client {
	t.Helper()
	return startServer(t, agent.Server{Workdir: dir})
}

func startServer(t *testing.T, s agent.Server) *tool.Client {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := agent.Serve(context.Background(), s, inR, outW)
		outW.Close()
		done <- err
	}()
	client, err := tool.Dial(t.Context(), inW, outR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		if err := <-done; err != nil {
			t.Errorf("agent ended with: %v", err)
		}
	})
	return client
}

// startProcess runs the agent as a process of its own.
func startProcess(t *testing.T, dir string) (*tool.Client, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"AGENT_TEST_WORKDIR=" + dir, "PATH=" + os.Getenv("PATH")}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client, err := tool.Dial(t.Context(), stdin, stdout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	return client, cmd
}

func call(t *testing.T, c *tool.Client, name, input string) tool.Result {
	t.Helper()
	result, err := c.Call(t.Context(), tool.Call{Tool: name, Input: json.RawMessage(input)})
	if err != nil {
		t.Fatalf("%s %s: %v", name, input, err)
	}
	return result
}

func textOf(t *testing.T, r tool.Result) string {
	t.Helper()
	var text strings.Builder
	for _, raw := range r.Content {
		var block struct{ Type, Text string }
		if err := json.Unmarshal(raw, &block); err != nil {
			t.Fatal(err)
		}
		if block.Type != "text" {
			t.Fatalf("block of type %q, want text", block.Type)
		}
		text.WriteString(block.Text)
	}
	return text.String()
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func pngOf(t *testing.T, width, height int) string {
	t.Helper()
	var buf bytes.Buffer
	if err := png.Encode(&buf, image.NewGray(image.Rect(0, 0, width, height))); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func TestReadMedia(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	picture := pngOf(t, 3, 2)
	// A chunk that decoders skip makes a picture of any size.
	padded := picture + strings.Repeat("\x00", 300<<10)
	webp := "RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\x00\x00\x00\x00" + strings.Repeat("\x00", 8)
	for name, content := range map[string]string{
		"small.png":   picture,
		"padded.PNG":  padded,
		"wrong.jpg":   picture,
		"text.png":    "not a picture",
		"p.webp":      webp,
		"doc.pdf":     "%PDF-1.7\n" + strings.Repeat("x", 300<<10),
		"fake.pdf":    "plain",
		"wide.png":    pngOf(t, 8001, 1),
		"huge.png":    picture + strings.Repeat("\x00", 5<<20),
		"huge.pdf":    "%PDF-1.7\n" + strings.Repeat("x", 20<<20),
		"damaged.png": picture[:20],
	} {
		writeFile(t, filepath.Join(dir, name), content)
	}
	if err := os.Symlink("/usr/share/x.png", filepath.Join(dir, "link.png")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo.png"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := start(t, dir)

	for name, want := range map[string]string{
		"small.png":  "image image/png " + picture,
		"padded.PNG": "image image/png " + padded,
		"wrong.jpg":  "image image/png " + picture,
		"p.webp":     "image image/webp " + webp,
		"doc.pdf":    "document application/pdf %PDF-1.7\n" + strings.Repeat("x", 300<<10),
		"text.png":   "text not a picture",
		"fake.pdf":   "text plain",

		"wide.png":    "error read: wide.png is 8001 by 1 pixels, exceeds 8000-pixel limit",
		"huge.png":    fmt.Sprintf("error read: huge.png is %d bytes, exceeds 5242880-byte limit for images", len(picture)+5<<20),
		"huge.pdf":    fmt.Sprintf("error read: huge.pdf is %d bytes, exceeds 20971520-byte limit.", 9+20<<20),
		"damaged.png": "error read: damaged.png is damaged: unexpected EOF",
		"gone.png":    "error read gone.png: no such file or directory",
		"link.png":    `error read: path "link.png" is outside the session's working directory`,
		"fifo.png":    "error read: fifo.png is not a regular file",
		"../x.png":    `error read: path "../x.png" is outside the session's working directory`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := call(t, client, "read", `{"file_path":"`+name+`"}`)
			if len(r.Content) != 1 {
				t.Fatalf("%d blocks", len(r.Content))
			}
			var block struct {
				Type, Text string
				Source     struct {
					Type, Data string
					MediaType  string `json:"media_type"`
				}
			}
			if err := json.Unmarshal(r.Content[0], &block); err != nil {
				t.Fatal(err)
			}
			data, err := base64.StdEncoding.DecodeString(block.Source.Data)
			if err != nil {
				t.Fatal(err)
			}
			got := block.Type + " " + block.Source.MediaType + " " + string(data)
			switch {
			case r.IsError:
				got = "error " + block.Text
			case block.Type == "text":
				got = "text " + block.Text
			}
			if got != want {
				t.Errorf("got %.200q, want %.200q", got, want)
			}
		})
	}

	// A part of a picture is text, as the official tool has it.
	if r := call(t, client, "read", `{"file_path":"small.png","view_range":[1,1]}`); !strings.Contains(textOf(t, r), "PNG") {
		t.Errorf("view_range of a picture: %s", r.Content)
	}
}

func TestHostileInput(t *testing.T) {
	t.Parallel()
	outer := t.TempDir()
	dir := filepath.Join(outer, "work")
	writeFile(t, filepath.Join(outer, "secret"), "secret")
	writeFile(t, filepath.Join(dir, "loop/x"), "")
	for link, target := range map[string]string{
		"up": "..", "abs": filepath.Join(outer, "secret"), "self": "self", "dangling": filepath.Join(outer, "new"),
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := start(t, dir)
	for _, c := range []struct{ tool, input string }{
		{"read", `{"file_path":"../secret"}`},
		{"read", `{"file_path":"up/secret"}`},
		{"read", `{"file_path":"abs"}`},
		{"read", `{"file_path":"self"}`},
		{"read", `{"file_path":"fifo"}`},
		{"read", `{"file_path":"a\u0000b"}`},
		{"read", `{"file_path":""}`},
		{"read", `{"file_path":["x"]}`},
		{"read", `{"file_path":"loop/x","view_range":[1]}`},
		{"read", `{"file_path":"/dev/zero"}`},
		{"read", `{"file_path":"/proc/self/environ"}`},
		{"read", `{"file_path":"` + strings.Repeat("x/", 5000) + `"}`},
		{"write", `{"file_path":"../secret","content":"x"}`},
		{"write", `{"file_path":"dangling","content":"x"}`},
		{"write", `{"file_path":"up/new","content":"x"}`},
		{"write", `{"file_path":"a\u0000b","content":"x"}`},
		{"write", `{"content":"x"}`},
		{"edit", `{"file_path":"abs","old_string":"secret","new_string":"x"}`},
		{"edit", `{"file_path":"fifo","old_string":"a","new_string":"b"}`},
		{"edit", `{}`},
		{"glob", `{"pattern":"*","path":"/etc"}`},
		{"glob", `{"pattern":""}`},
		{"grep", `{"pattern":"x","path":"../"}`},
		{"grep", `{}`},
		{"bash", `null`},
		{"bash", `[]`},
		{"bash", `{"command":""}`},
		{"no such tool", `{}`},
		{"", `{}`},
	} {
		if r := call(t, client, c.tool, c.input); !r.IsError {
			t.Errorf("%s %.80s succeeded: %s", c.tool, c.input, r.Content)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(outer, "secret")); string(got) != "secret" {
		t.Errorf("the file outside is now %q", got)
	}
	if _, err := os.Lstat(filepath.Join(outer, "new")); err == nil {
		t.Error("a file was made outside")
	}

	// A link read by its own bytes, a NUL to the shell: harmless, and no crash.
	for _, input := range []string{`{"command":"echo a\u0000b"}`, `{"command":"echo ok","timeout_ms":-5}`,
		`{"command":"echo ok","timeout_ms":99999999999999999999}`, `{"command":"echo ok","timeout_ms":"soon"}`} {
		call(t, client, "bash", input)
	}
	if r := call(t, client, "bash", `{"command":"echo alive"}`); textOf(t, r) != "alive\n\n" {
		t.Errorf("the shell after all that: %s", r.Content)
	}
}

func TestReadOnlyRoots(t *testing.T) {
	t.Parallel()
	dir, shared := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(shared, "note"), "hello")
	client := startServer(t, agent.Server{Workdir: dir, AllowedRoots: []string{shared}, ReadOnlyRoots: []string{shared}})
	if r := call(t, client, "read", `{"file_path":"`+shared+`/note"}`); textOf(t, r) != "hello" || r.IsError {
		t.Errorf("read: %s", r.Content)
	}
	if r := call(t, client, "write", `{"file_path":"`+shared+`/note","content":"x"}`); !r.IsError {
		t.Errorf("write: %s", r.Content)
	}
}

func TestCallTimeout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	client := start(t, dir)
	call(t, client, "bash", `{"command":"true"}`) // so that the shell is there
	got, err := client.Call(t.Context(), tool.Call{
		Tool: "bash", Input: json.RawMessage(`{"command":"echo begun; sleep 60","timeout_ms":60000}`), TimeoutMS: 1500,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "begun\n\n[timed out]\nsession restarted after timeout"; textOf(t, got) != want || !got.IsError || !got.TimedOut {
		t.Errorf("got %q, want %q", textOf(t, got), want)
	}

	// The wait for an earlier command counts.
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := client.Call(t.Context(), tool.Call{Tool: "bash", Input: json.RawMessage(`{"command":"echo x >held; sleep 2"}`)})
		if err != nil {
			t.Error(err)
		}
	})
	waitFile(t, filepath.Join(dir, "held"))
	got, err = client.Call(t.Context(), tool.Call{Tool: "bash", Input: json.RawMessage(`{"command":"true"}`), TimeoutMS: 100})
	if err != nil {
		t.Fatal(err)
	}
	if want := `tool "bash" timed out after 100ms`; textOf(t, got) != want || !got.IsError || !got.TimedOut {
		t.Errorf("got %q, want %q", textOf(t, got), want)
	}
	wg.Wait()
}

// waitFile waits until the file is there.
func waitFile(t *testing.T, path string) {
	t.Helper()
	if !appears(path) {
		t.Fatalf("%s did not appear", path)
	}
}

// appears reports whether the file comes to hold something, in good time.
func appears(path string) bool {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if info, err := os.Stat(path); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// A command that is cut short takes with it everything it started, while what an
// earlier one detached lives on.
func TestCutShortKillsTheWholeTree(t *testing.T) {
	t.Parallel()
	cut := map[string]func(*testing.T, *tool.Client, string) (tool.Result, error){
		"timeout": func(t *testing.T, c *tool.Client, _ string) (tool.Result, error) {
			return c.Call(t.Context(), tool.Call{Tool: "bash", Input: forking, TimeoutMS: 3000})
		},
		"cancel": func(t *testing.T, c *tool.Client, dir string) (tool.Result, error) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer cancel()
				for _, file := range []string{"plain", "session", "orphan"} {
					appears(filepath.Join(dir, file))
				}
			}()
			return c.Call(ctx, tool.Call{Tool: "bash", Input: forking})
		},
	}
	for name, run := range cut {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			client, _ := startProcess(t, dir)
			if r := call(t, client, "bash", `{"command":"setsid sh -c 'echo $$ >server; exec sleep 300' & sleep .2"}`); r.IsError {
				t.Fatal(textOf(t, r))
			}
			result, err := run(t, client, dir)
			if err != nil {
				t.Fatal(err)
			}
			if !result.IsError {
				t.Errorf("result %s", result.Content)
			}
			for _, file := range []string{"plain", "session", "orphan"} {
				if pid := pidIn(t, dir, file); alive(pid) {
					t.Errorf("%s (pid %d) is alive", file, pid)
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			server := pidIn(t, dir, "server")
			if !alive(server) {
				t.Error("the earlier command's server is dead")
			}
			_ = unix.Kill(server, unix.SIGKILL)
			if r := call(t, client, "bash", `{"command":"echo fresh"}`); textOf(t, r) != "fresh\n\n" {
				t.Errorf("afterwards: %s", r.Content)
			}
		})
	}
}

// forking starts a child, one in a session of its own, and one that is detached by
// a double fork as well.
var forking = json.RawMessage(`{"command":"sh -c 'echo $$ >plain; exec sleep 300' & ` +
	`setsid sh -c 'echo $$ >session; exec sleep 300' & ` +
	`(setsid sh -c 'echo $$ >orphan; exec sleep 300' &); sleep 300"}`)

func pidIn(t *testing.T, dir, file string) int {
	t.Helper()
	waitFile(t, filepath.Join(dir, file))
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// alive reports whether the process runs; one that waits to be reaped does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(data, []byte(") Z "))
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	client, cmd := startProcess(t, dir)
	if r := call(t, client, "bash", `{"command":"for i in 1 2 3 4 5; do (true &); done; (sh -c 'echo $$ >last' &)"}`); r.IsError {
		t.Fatal(textOf(t, r))
	}
	pidIn(t, dir, "last")
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		data, err := os.ReadFile(children)
		if err != nil {
			t.Skipf("the kernel does not list children: %v", err)
		}
		// The shell is the one that stays.
		if n := len(strings.Fields(string(data))); n <= 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: %s", data)
		}
	}
}

func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	client := start(t, dir)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			name := fmt.Sprintf("f%d", i)
			call(t, client, "write", `{"file_path":"`+name+`","content":"`+name+`"}`)
			if r := call(t, client, "read", `{"file_path":"`+name+`"}`); textOf(t, r) != name {
				t.Errorf("read %s: %s", name, r.Content)
			}
			if i%8 == 0 {
				if r := call(t, client, "bash", `{"command":"cat `+name+`"}`); textOf(t, r) != name+"\n" && textOf(t, r) != name {
					t.Errorf("cat %s: %s", name, r.Content)
				}
			}
		})
	}
	wg.Wait()
}

// What the agent makes of frames no client of ours would send.
func TestServeBadFrames(t *testing.T) {
	t.Parallel()
	frame := func(body string) string {
		n := len(body)
		return string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
	}
	for name, c := range map[string]struct {
		in  string
		bad bool
	}{
		"nothing":          {in: ""},
		"unknown fields":   {in: frame(`{"seq":1,"x":2,"cancel":true}`)},
		"cancel of no one": {in: frame(`{"seq":9,"cancel":true}`)},
		"half a length":    {in: "\x00\x00", bad: true},
		"half a body":      {in: "\x00\x00\x00\x09{}", bad: true},
		"empty frame":      {in: "\x00\x00\x00\x00", bad: true},
		"giant frame":      {in: "\xff\xff\xff\xff", bad: true},
		"no JSON":          {in: frame("hello"), bad: true},
		"wrong types":      {in: frame(`{"seq":"one"}`), bad: true},
		"asks for nothing": {in: frame(`{"seq":1}`), bad: true},
		"the same twice": {
			in: frame(`{"seq":1,"call":{"tool":"bash","input":{"command":"sleep 9"}}}`) +
				frame(`{"seq":1,"call":{"tool":"bash","input":{"command":"sleep 9"}}}`),
			bad: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := agent.Serve(t.Context(), agent.Server{Workdir: t.TempDir()}, strings.NewReader(c.in), io.Discard)
			if errors.Is(err, tool.ErrFrame) != c.bad {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	in, inW := io.Pipe()
	defer inW.Close()
	done := make(chan error)
	go func() { done <- agent.Serve(ctx, agent.Server{Workdir: t.TempDir()}, in, io.Discard) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWhenItCannotAnswer(t *testing.T) {
	t.Parallel()
	in, inW := io.Pipe()
	defer inW.Close()
	out, outW := io.Pipe()
	out.Close()
	err := agent.Serve(t.Context(), agent.Server{Workdir: t.TempDir()}, in, outW)
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("ended with %v", err)
	}
}

// The tools an agent has are those the model is told of.
func TestDefinitionsMatch(t *testing.T) {
	t.Parallel()
	var names []string
	for _, d := range tool.Definitions() {
		names = append(names, d.Name)
		var schema struct {
			Type       string
			Properties map[string]struct{ Type string }
		}
		if err := json.Unmarshal(d.InputSchema, &schema); err != nil || schema.Type != "object" || len(schema.Properties) == 0 {
			t.Errorf("%s: schema %s: %v", d.Name, d.InputSchema, err)
		}
	}
	if diff := cmp.Diff(names, start(t, t.TempDir()).Tools()); diff != "" {
		t.Error(diff)
	}
}

func FuzzServe(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x17{\"seq\":1,\"cancel\":true}"))
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		for r := bytes.NewReader(in); ; {
			var req tool.Request
			if tool.ReadFrame(r, &req) != nil {
				break
			}
			if req.Shell != nil || req.Call != nil && req.Call.Tool == "bash" {
				t.Skip("no commands of a fuzzer's making on this host")
			}
		}
		_ = agent.Serve(t.Context(), agent.Server{Workdir: dir}, bytes.NewReader(in), io.Discard)
	})
}
