package tool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool"
)

// dialShells is dial with an agent that can open shells, and opens one.
func dialShells(t *testing.T) (*tool.Client, *tool.Shell, agent) {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	a := agent{t, inR, outW}
	go a.send(tool.Reply{Hello: &tool.Hello{Version: tool.WireVersion, Tools: []string{"bash"}, Shells: true}})
	client, err := tool.Dial(t.Context(), inW, outR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		outW.Close()
		inR.Close()
	})
	opened := make(chan *tool.Shell)
	go func() {
		s, err := client.Shell(t.Context(), tool.Terminal{Rows: 2, Cols: 3, Term: "vt100"})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	want := tool.Request{Seq: 1, Shell: &tool.Terminal{Rows: 2, Cols: 3, Term: "vt100"}}
	if diff := cmp.Diff(want, a.next()); diff != "" {
		t.Error(diff)
	}
	return client, <-opened, a
}

func TestNoShells(t *testing.T) {
	t.Parallel()
	client, _ := dial(t)
	if _, err := client.Shell(t.Context(), tool.Terminal{}); !errors.Is(err, tool.ErrNoShell) {
		t.Errorf("error %v, want ErrNoShell", err)
	}
}

func TestShellStreams(t *testing.T) {
	t.Parallel()
	_, s, far := dialShells(t)
	go func() {
		far.send(tool.Reply{Seq: 1, Data: []byte("one ")})
		far.send(tool.Reply{Seq: 1, Data: []byte("two")})
		far.send(tool.Reply{Seq: 1, Exit: &tool.ShellExit{Code: 3}})
	}()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "one two" {
		t.Errorf("read %q, %v", got, err)
	}
	if exit, err := s.Wait(t.Context()); err != nil || exit.Code != 3 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after the end: %v", err)
	}
}

// TestShellCredit: output is asked for as it is read, and input waits until it is.
func TestShellCredit(t *testing.T) {
	t.Parallel()
	_, s, far := dialShells(t)
	go func() {
		for range tool.ShellWindow / tool.ShellChunk {
			far.send(tool.Reply{Seq: 1, Data: make([]byte, tool.ShellChunk)})
		}
	}()
	granted := make(chan int)
	go func() {
		sum := 0
		for sum <= tool.ShellWindow*3/4 { // the last few are not worth a frame
			sum += far.next().Credit
		}
		granted <- sum
	}()
	if _, err := io.ReadFull(s, make([]byte, tool.ShellWindow)); err != nil {
		t.Fatal(err)
	}
	if sum := <-granted; sum > tool.ShellWindow {
		t.Errorf("%d bytes were asked for anew, and %d were read", sum, tool.ShellWindow)
	}

	typed := make(chan int)
	go func() {
		n, err := s.Write(make([]byte, tool.ShellWindow+1))
		if err != nil {
			t.Error(err)
		}
		typed <- n
	}()
	for got := 0; got < tool.ShellWindow; {
		got += len(far.next().Data)
	}
	select {
	case <-typed:
		t.Fatal("more was typed than the agent asked for")
	default:
	}
	far.send(tool.Reply{Seq: 1, Credit: 1})
	if n := len(far.next().Data); n != 1 {
		t.Errorf("%d more bytes, want 1", n)
	}
	if n := <-typed; n != tool.ShellWindow+1 {
		t.Errorf("wrote %d", n)
	}
}

// TestShellOffences: an agent that does not keep to what was agreed is lost.
func TestShellOffences(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		replies []any
	}{
		{"more output than asked for", []any{tool.Reply{Seq: 1, Data: make([]byte, tool.ShellWindow)}, tool.Reply{Seq: 1, Data: []byte("x")}}},
		{"more taken than typed", []any{tool.Reply{Seq: 1, Credit: 1}}},
		{"less than nothing taken", []any{tool.Reply{Seq: 1, Credit: -1}}},
		{"nothing", []any{tool.Reply{Seq: 1}}},
		{"a result", []any{tool.Reply{Seq: 1, Result: &tool.Result{}}}},
		{"a long excuse", []any{tool.Reply{Seq: 1, Exit: &tool.ShellExit{Error: string(make([]byte, 5000))}}}},
		{"output after the end", []any{tool.Reply{Seq: 1, Exit: &tool.ShellExit{}}, tool.Reply{Seq: 1, Data: []byte("x")}}},
		{"another's output", []any{tool.Reply{Seq: 7, Data: []byte("x")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			client, _, far := dialShells(t)
			go func() {
				for _, r := range tt.replies {
					far.send(r)
				}
			}()
			<-client.Done()
		})
	}
}

// TestShellNotClosed: an agent that does not end a shell is lost, as with a call.
func TestShellNotClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, s, far := dialShells(t)
		go func() {
			if !far.next().Cancel {
				t.Error("the shell is not hung up")
			}
		}()
		began := time.Now()
		s.Close()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("read after Close: %v", err)
		}
		<-client.Done()
		if took := time.Since(began); took > time.Minute {
			t.Errorf("took %s", took)
		}
		if _, err := s.Wait(t.Context()); !errors.Is(err, tool.ErrLost) {
			t.Errorf("Wait: %v", err)
		}
	})
}

// TestShellWaitGivesUp: a caller that does not want to wait need not.
func TestShellWaitGivesUp(t *testing.T) {
	t.Parallel()
	_, s, _ := dialShells(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

func FuzzShell(f *testing.F) {
	hello := frame(`{"hello":{"version":1,"tools":["bash"],"shells":true}}`)
	for _, body := range []string{`{"seq":1,"data":"bHMK"}`, `{"seq":1,"exit":{"code":0}}`, `{"seq":1,"credit":5}`, `{"seq":1}`} {
		f.Add(frame(body))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		late, begin := io.Pipe()
		client, err := tool.Dial(t.Context(), discard{}, io.MultiReader(bytes.NewReader(hello), late))
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.Shell(t.Context(), tool.Terminal{})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = begin.Write(out)
			_ = begin.Close()
		}()
		n, err := io.Copy(io.Discard, s)
		if n > int64(len(out)) {
			t.Fatal(fmt.Sprint(n, " bytes were read of ", len(out)))
		}
		if err != nil && !errors.Is(err, tool.ErrLost) {
			t.Fatal(err)
		}
	})
}
