package control

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
)

// A deaf place is a required sink that can be told to take nothing.
type deaf struct{ on atomic.Bool }

func (d *deaf) Name() string { return "deaf" }
func (d *deaf) Close() error { return nil }

func (d *deaf) Write(context.Context, []audit.Line) error {
	if d.on.Load() {
		return errors.New("takes nothing")
	}
	return nil
}

// A lease that runs out is taken from its worker only once that is on record.
func TestALapsedLeaseIsOnRecordFirst(t *testing.T) {
	t.Parallel()
	d := new(deaf)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(path, audit.Options{Sinks: []audit.SinkOptions{{Sink: d, Required: true}}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w := newWorld(t, Config{Audit: log})
	s, p := w.session()
	item, beat := w.take(p)
	w.calls(s, api.PermissionAllow)
	w.pass(2 * time.Minute)

	d.on.Store(true)
	if err := w.Sweep(w.ctx); err == nil || !strings.Contains(err.Error(), "takes nothing") {
		t.Errorf("a sweep without a record: %v", err)
	}
	if _, err := w.HeartbeatWork(w.ctx, p, p.EnvironmentID, item.ID, api.HeartbeatRequest{Expected: beat.LastHeartbeat}); err != nil {
		t.Errorf("the lease was taken without a record: %v", err)
	}
	d.on.Store(false)
	w.pass(2 * time.Minute)
	w.sweep()
	if again := w.poll(p); again == nil || again.ID != item.ID {
		t.Errorf("offered again: %+v", again)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := audit.OpenSegments(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n := 0
	for e, err := range audit.Entries(r, audit.Filter{Actions: []string{audit.WorkLapsed}}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; e.Session != string(s.ID) || e.Attrs["work_id"] != string(item.ID) || e.Attrs["state"] != string(api.WorkActive) {
			t.Errorf("record %s", e.Raw)
		}
	}
	if n == 0 {
		t.Error("nothing on record")
	}
}
