package worker

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// variables gives a session variables of two kinds.
func (f *field) variables(session string) {
	f.plane.mu.Lock()
	defer f.plane.mu.Unlock()
	s := f.plane.sessions[session]
	s.variables = []map[string]any{
		{"credential_id": "vcrd_1", "vault_id": "vlt_1", "name": "ANYWHERE", "networking": map[string]any{"type": "unrestricted"}, "injection_location": map[string]any{"body": true, "header": true}},
		{"credential_id": "vcrd_2", "vault_id": "vlt_1", "name": "LIMITED", "networking": map[string]any{"type": "limited", "allowed_hosts": []string{"*.example.com"}}, "injection_location": map[string]any{"body": false, "header": true}},
	}
	s.values = map[string]string{"vcrd_1": "first value", "vcrd_2": "second value"}
}

func (f *field) setValue(session, credential, value string) {
	f.plane.mu.Lock()
	defer f.plane.mu.Unlock()
	if s := f.plane.sessions[session]; value == "" {
		delete(s.values, credential)
	} else {
		s.values[credential] = value
	}
}

// asked counts the requests for values.
func (f *field) asked() int { return f.plane.count("POST", "/value") }

func TestVariables(t *testing.T) {
	freezing(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		f.plane.session("sesn_1", []toolUse{bash("c1"), {id: "x", name: "web_search"}})
		f.variables("sesn_1")
		f.start(func(c *Config) { c.Networks = nets; c.PoolSize = 1 })
		f.answered("sesn_1", "c1")

		// A box of the pool could not have them.
		boxes := f.driver.started()
		i := slices.IndexFunc(boxes, func(b *fakeBox) bool {
			return slices.Contains(b.spec.Env, "LIMITED=placeholder of LIMITED")
		})
		if i < 0 || slices.Contains(f.actions(), "pool.claim") {
			t.Fatalf("of %d boxes none was started with the variables", len(boxes))
		}
		for _, b := range boxes {
			if strings.Contains(fmt.Sprint(b.spec.Env, b.spec.Files), " value") {
				t.Errorf("a value is in the box: %v", b.spec.Env)
			}
		}
		var vars []Variable
		for _, n := range nets.all {
			if len(n.variables) > 0 {
				vars = n.variables
			}
		}
		if len(vars) != 2 || vars[0].Hosts != nil || !vars[0].Body || vars[1].Body || !vars[1].Header || !cmp.Equal(vars[1].Hosts, []string{"*.example.com"}) {
			t.Fatalf("variables %+v", vars)
		}
		if n := f.asked(); n != 0 {
			t.Errorf("values were asked for %d times before any was needed", n)
		}
		want := func(when, value string, asked int) {
			t.Helper()
			got, err := vars[1].Value(f.Context())
			if got != value || (err != nil) != (value == "") || f.asked() != asked {
				t.Errorf("%s: %q, %v, asked %d times; want %q, %d times", when, got, err, f.asked(), value, asked)
			}
		}
		want("at first", "second value", 1)
		want("again", "second value", 1)
		f.setValue("sesn_1", "vcrd_2", "rotated")
		want("right after it was rotated", "second value", 1)
		time.Sleep(lentFor)
		want("a while after", "rotated", 2)

		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/value") {
				return nil, fmt.Errorf("the plane is away")
			}
			return nil, nil
		})
		time.Sleep(lentFor)
		want("while the plane is away", "rotated", 2)
		time.Sleep(lentStale)
		want("when it is away for long", "", 2)
		f.plane.setFault(nil)
		want("when it is back", "rotated", 3)
		f.setValue("sesn_1", "vcrd_2", "")
		time.Sleep(lentFor)
		want("when it is archived", "", 4)
	})
}

// TestVariablesOfAKeptBox: whoever serves the session now is asked.
func TestVariablesOfAKeptBox(t *testing.T) {
	freezing(t, func(f *field) {
		nets := &fakeNetworks{t: t}
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.variables("sesn_1")
		f.start(func(c *Config) { c.Networks = nets })
		f.stopped("sesn_1")
		synctest.Wait()
		f.next("sesn_1", bash("c2"), toolUse{id: "x", name: "web_search"})
		f.answered("sesn_1", "c2")
		if n := len(f.driver.started()); n != 1 {
			t.Fatalf("%d boxes", n)
		}
		if got, err := nets.last().variables[0].Value(f.Context()); err != nil || got != "first value" {
			t.Errorf("got %q, %v", got, err)
		}
		f.plane.mu.Lock()
		defer f.plane.mu.Unlock()
		for _, r := range f.plane.requests {
			if strings.HasSuffix(r.path, "/value") && !strings.Contains(r.path, "work_sesn_1_1") {
				t.Errorf("asked with the item of before: %s", r.path)
			}
		}
	})
}

// TestVariablesThatCannotBeKnown: a box without what it is to have would fail in ways
// that nobody understands.
func TestVariablesThatCannotBeKnown(t *testing.T) {
	freezing(t, func(f *field) {
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		f.variables("sesn_1")
		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if strings.HasSuffix(r.URL.Path, "/variables") {
				return &fakeReply{status: 503}, nil
			}
			return nil, nil
		})
		f.start(func(c *Config) { c.Networks = &fakeNetworks{t: t} })
		f.answered("sesn_1", "c1")
		text, isError, _ := f.plane.result("sesn_1", "c1")
		if !isError || !strings.Contains(text, "variables") {
			t.Errorf("the call was answered %q", text)
		}
		if n := len(f.driver.started()); n != 0 {
			t.Errorf("%d boxes were started", n)
		}
	})
}
