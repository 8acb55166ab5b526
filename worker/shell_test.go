package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/tool"
)

// person is somebody at a terminal.
type person struct {
	in  *io.PipeWriter
	mu  sync.Mutex
	out strings.Builder

	stuck chan struct{} // if set, the terminal takes nothing in until it is closed

	exit tool.ShellExit
	err  error
	done chan struct{}
}

func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	stuck := p.stuck
	p.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *person) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// opens opens a shell.
func opens(t *testing.T, ctx context.Context, w *started, session string) *person {
	r, in := io.Pipe()
	p := &person{in: in, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.exit, p.err = w.Shell(ctx, session, ShellRequest{Person: "jo", In: r, Out: p, Terminal: tool.Terminal{Rows: 24, Cols: 80}})
	}()
	t.Cleanup(func() { in.Close() })
	return p
}

func allow(c *Config) { c.Shell.Allow = true }

// TestShell: a person looks into a box that was kept, and the record knows.
func TestShell(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start(func(c *Config) { allow(c); c.Shell.Transcript = true })
		f.stopped("sesn_1")
		synctest.Wait()
		b := f.driver.started()[0]
		p := opens(f.T, f.Context(), w, "sesn_1")
		if _, err := p.in.Write([]byte("ls\n")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if frozen, _ := b.isFrozen(); frozen {
			t.Error("the box is frozen")
		}
		// Nobody takes the box away from under a person.
		time.Sleep(10 * time.Minute)
		for range 3 {
			if _, err := p.in.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(14 * time.Minute)
		}
		if b.over() {
			t.Error("the box was given up")
		}
		if _, err := p.in.Write([]byte("exit\n")); err != nil {
			t.Fatal(err)
		}
		<-p.done
		if p.exit.Code != 5 || p.err != nil || p.seen() != "$ ls\nxxx" {
			t.Errorf("exit %+v, %v; seen %q", p.exit, p.err, p.seen())
		}
		time.Sleep(time.Minute)
		if frozen, _ := b.isFrozen(); !frozen && !b.over() {
			t.Error("the box is not frozen afterwards")
		}

		var got []string
		var end audit.Fields
		for _, e := range f.entries() {
			if e.Action == audit.ShellStart || e.Action == audit.ShellEnd {
				got = append(got, e.Action+" "+e.Session+" "+e.Attrs["person"]+" "+e.Outcome)
				end = e
			}
		}
		if diff := cmp.Diff([]string{"shell.start sesn_1 jo ", "shell.end sesn_1 jo exit 5"}, got); diff != "" {
			t.Error(diff)
		}
		if end.Attrs["typed_bytes"] != "11" || end.Attrs["shown_bytes"] != "8" || len(end.Attrs["transcript_sha256"]) != 64 {
			t.Errorf("the end's attributes: %v", end.Attrs)
		}
		cast, err := os.ReadFile(filepath.Join(f.dir, end.Attrs["transcript"]))
		if err != nil {
			t.Fatal(err)
		}
		shown := ""
		for i, line := range strings.Split(strings.TrimSpace(string(cast)), "\n") {
			var event [3]any
			if i > 0 && json.Unmarshal([]byte(line), &event) == nil && event[1] == "o" {
				shown += event[2].(string)
			}
		}
		if shown != "$ ls\nxxx" {
			t.Errorf("the transcript shows %q", shown)
		}
	})
}

// TestShellsDenialsAreNotTold: the model is told what its own tools were refused, those in
// the background included, and nothing of what a person tried.
func TestShellsDenialsAreNotTold(t *testing.T) {
	freezing(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		f.plane.session("sesn_1", []toolUse{bash("c1"), {id: "x", name: "web_search"}})
		w := f.start(func(c *Config) { allow(c); c.Networks = nets })
		f.answered("sesn_1", "c1")
		denied := func(host string) {
			if err := nets.last().connect(host, false); err != nil {
				t.Error(err)
			}
		}
		denied("background.example:443")
		f.next("sesn_1", bash("c2"))
		f.answered("sesn_1", "c2")
		f.wantResult("sesn_1", "c2", "blocked: background.example:443 is not allowed.", false)

		p := opens(f.T, f.Context(), w, "sesn_1")
		synctest.Wait()
		denied("persons.example:443")
		f.next("sesn_1", bash("c3"))
		f.answered("sesn_1", "c3")
		denied("persons.example:443")
		if _, err := p.in.Write([]byte("exit\n")); err != nil {
			t.Fatal(err)
		}
		<-p.done
		f.next("sesn_1", bash("c4"))
		f.answered("sesn_1", "c4")
		for _, call := range []string{"c3", "c4"} {
			if got, _, _ := f.plane.result("sesn_1", call); strings.Contains(got, "blocked") {
				t.Errorf("%s says %q", call, got)
			}
		}
		denied("background.example:443")
		f.next("sesn_1", bash("c5"))
		f.answered("sesn_1", "c5")
		f.wantResult("sesn_1", "c5", "blocked: background.example:443 is not allowed.", false)
	})
}

func TestShellRefused(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start()
		f.stopped("sesn_1")
		synctest.Wait()
		p := opens(f.T, f.Context(), w, "sesn_1")
		if <-p.done; !errors.Is(p.err, ErrShellNotAllowed) {
			t.Errorf("without leave: %v", p.err)
		}
		w.Apply(Live{Shell: ShellRules{Allow: true, Max: 1}})
		p = opens(f.T, f.Context(), w, "sesn_2")
		if <-p.done; !errors.Is(p.err, ErrNoBox) {
			t.Errorf("of another session: %v", p.err)
		}
		first := opens(f.T, f.Context(), w, "sesn_1")
		synctest.Wait()
		p = opens(f.T, f.Context(), w, "sesn_1")
		if <-p.done; !errors.Is(p.err, ErrShellsMax) {
			t.Errorf("one too many: %v", p.err)
		}
		first.in.Close()
		<-first.done
		w.step = func(name string) error {
			if name == audit.ShellStart {
				return errors.New("disk full")
			}
			return nil
		}
		p = opens(f.T, f.Context(), w, "sesn_1")
		if <-p.done; p.err == nil || !strings.Contains(p.err.Error(), "audit record cannot be written") || p.seen() != "" {
			t.Errorf("without a record: %v, seen %q", p.err, p.seen())
		}
	})
}

// TestShellEnds lists what ends a shell from outside.
func TestShellEnds(t *testing.T) {
	tests := []struct {
		name  string
		play  func(w *started, p *person, cancel func())
		after time.Duration
		want  string
	}{
		{"nothing is typed", func(*started, *person, func()) {}, 15 * time.Minute, "nothing was typed"},
		{"it is open for too long", func(_ *started, p *person, _ func()) {
			for range 100 {
				if _, err := p.in.Write([]byte("x")); err != nil {
					return
				}
				select {
				case <-p.done:
					return
				case <-time.After(time.Minute):
				}
			}
		}, time.Hour, "for as long as the operator allows"},
		{"the person leaves", func(_ *started, p *person, _ func()) { p.in.Close() }, 0, "canceled"},
		{"shells are allowed no more", func(w *started, _ *person, _ func()) {
			time.Sleep(time.Minute)
			w.Apply(Live{})
		}, time.Minute, "allows no shells any more"},
		{"less time is allowed", func(w *started, _ *person, _ func()) {
			time.Sleep(2 * time.Minute)
			w.Apply(Live{Shell: ShellRules{Allow: true, For: 5 * time.Minute}})
		}, 5 * time.Minute, "for as long as the operator allows"},
		{"it was idle for as long as is allowed now", func(w *started, _ *person, _ func()) {
			time.Sleep(5 * time.Minute)
			w.Apply(Live{Shell: ShellRules{Allow: true, Idle: 2 * time.Minute}})
		}, 5 * time.Minute, "nothing was typed"},
		{"its terminal takes nothing in", func(_ *started, p *person, _ func()) {
			p.mu.Lock()
			p.stuck = make(chan struct{})
			p.mu.Unlock()
			_, _ = p.in.Write([]byte("x"))
		}, 15 * time.Minute, "nothing was typed"},
		{"whoever asked gives up", func(_ *started, _ *person, cancel func()) { cancel() }, 0, "canceled"},
		{"the session ends", func(w *started, _ *person, _ func()) { w.f.plane.say("sesn_1", "session.status_terminated", nil) }, 0, "lost"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			freezing(t, func(f *field) {
				f.plane.session("sesn_1", []toolUse{bash("c1"), {id: "x", name: "web_search"}})
				w := f.start(allow)
				f.answered("sesn_1", "c1")
				ctx, cancel := context.WithCancel(f.Context())
				defer cancel()
				began := time.Now()
				p := opens(f.T, ctx, w, "sesn_1")
				synctest.Wait()
				go tt.play(w, p, cancel)
				<-p.done
				if p.err == nil || !strings.Contains(p.err.Error(), tt.want) {
					t.Errorf("ended with %v, want …%s…", p.err, tt.want)
				}
				if took := time.Since(began); took < tt.after || took > tt.after+time.Minute {
					t.Errorf("ended after %s, want %s", took, tt.after)
				}
				p.in.Close()
				if p.stuck != nil {
					close(p.stuck)
				}
				if actions := f.actions(); !strings.Contains(strings.Join(actions, " "), "shell.end") {
					t.Errorf("its end is not on record: %v", actions)
				}
			})
		})
	}
}
