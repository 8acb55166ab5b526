package field

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// TestABoxThatCannotTakeOnNewRulesIsStopped: it would go on under the old ones.
func TestABoxThatCannotTakeOnNewRulesIsStopped(t *testing.T) {
	t.Parallel()
	n, err := newNetworks(filepath.Join(t.TempDir(), "net"), "", netjail.NewMemory(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	open := func(box string, record func(audit.Record) error) *jail {
		t.Helper()
		j, err := n.Open(box, nil, record)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		return j.(*jail)
	}
	good := open("good", func(audit.Record) error { return nil })
	bad := open("bad", func(audit.Record) error { return errors.New("disk full") })
	if err := n.set(rules{policy: egress.Policy{Mode: "nonsense"}}); err == nil || bad.Err() != nil {
		t.Errorf("rules that are none: %v", err)
	}
	err = n.set(rules{policy: egress.Policy{Mode: egress.Unrestricted}})
	if err == nil || !strings.Contains(err.Error(), "box bad is stopped") || strings.Contains(err.Error(), "box good") {
		t.Errorf("set: %v", err)
	}
	<-bad.Done()
	if bad.Err() == nil || good.Err() != nil {
		t.Errorf("ended with %v and %v, want only the first lost", bad.Err(), good.Err())
	}
}

// TestReloadOfStricterRules: they hold for boxes that run, also if boxes to come will
// have no network at all, and can be taken back.
func TestReloadOfStricterRules(t *testing.T) {
	t.Parallel()
	environments := "environments:\n- {id: env_1, key-file: key-1}\n"
	limited := head + "network: {mode: limited, proxy-env: PROXY, rules: [{hosts: [a.example]}]}\n" +
		"credentials: [{name: TOKEN, hosts: [a.example], from: {env: TOKEN}}]\n" + environments
	y := newYard(t, limited, fast())
	y.env["PROXY"], y.env["OTHER"] = "http://127.0.0.1:3128", "http://127.0.0.1:3129"
	f, stop := y.run()
	y.until("it polls", func() bool { return y.polled("env_1") > 0 })
	n := f.sites[0].networks
	var mu sync.Mutex
	var policies []string
	opened, err := n.Open("box1", nil, func(r audit.Record) error {
		mu.Lock()
		defer mu.Unlock()
		if r.Action == audit.EgressPolicy && r.Attrs["policy"] != "" {
			policies = append(policies, r.Attrs["policy"])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	box := opened.(*jail)
	placeholders := len(box.Env())
	last := func() string {
		mu.Lock()
		defer mu.Unlock()
		return policies[len(policies)-1]
	}
	hash := func(p egress.Policy) string {
		r, err := p.Compile()
		if err != nil {
			t.Fatal(err)
		}
		return r.Hash()
	}
	reload := func(text string) error { y.write("worker.yaml", text); return f.Reload() }

	if err := reload(strings.Replace(limited, "PROXY", "NOTHING", 1)); err == nil || !strings.Contains(err.Error(), "stays as it was") || f.Config().environment("env_1").Network.ProxyEnv != "PROXY" {
		t.Errorf("with a proxy that is not there: %v", err)
	}
	dialer := n.dialer
	if err := reload(limited); err != nil || n.dialer != dialer {
		t.Errorf("the same once more: %v", err)
	}
	if err := reload(strings.Replace(limited, "PROXY", "OTHER", 1)); err != nil || n.dialer == dialer || n.dialer.Proxy.String() != "http://127.0.0.1:3129" {
		t.Errorf("another proxy: %v", err)
	}
	if err := reload(head + "network: {mode: none}\n" + environments); err != nil {
		t.Fatal(err)
	}
	if last() != hash(egress.Policy{}) || len(box.Env()) >= placeholders {
		t.Errorf("mode none: the box's policy is %s, its environment %v", last(), box.Env())
	}
	if err := reload(limited); err != nil || last() == hash(egress.Policy{}) || len(box.Env()) != placeholders {
		t.Errorf("taken back: %v, environment %v", err, box.Env())
	}
	if err := box.Close(); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
