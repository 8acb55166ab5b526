// Package storetest is the contract of package store: what every database engine
// has to do, in the same words for all of them. An engine's own test calls [Run]
// and adds only what no other engine has.
//
// It also makes databases for the tests of other packages: [SQLite] and
// [Postgres]. It knows nothing of what the rows mean. Start reading at [Run].
package storetest

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// Run checks an engine against the contract. newDB makes an empty database that
// lives until t ends and returns its URL for [store.Open]; it is called once a
// test, from several goroutines.
func Run(t *testing.T, newDB func(t testing.TB) (url string)) {
	for _, section := range []struct {
		name  string
		tests []test
	}{
		{"Open", openTests},
		{"Tx", txTests},
		{"Agents", agentTests},
		{"Environments", environmentTests},
		{"Keys", keyTests},
		{"Sessions", sessionTests},
		{"Events", eventTests},
		{"Work", workTests},
		{"Tunnels", tunnelTests},
		{"Federation", federationTests},
		{"Vaults", vaultTests},
		{"Edges", edgeTests},
	} {
		t.Run(section.name, func(t *testing.T) {
			t.Parallel()
			for _, test := range section.tests {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					test.run(&rig{t: t, ctx: t.Context(), url: newDB(t), now: start})
				})
			}
		})
	}
}

type test struct {
	name string
	run  func(*rig)
}

// start is the time of the first transaction of every test. Each one after it is
// a microsecond later.
var start = time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC)

// A rig is a database under test.
type rig struct {
	t   *testing.T
	ctx context.Context
	url string
	db  *store.DB

	mu      sync.Mutex
	now     time.Time
	topics  []string        // notified so far
	noticed chan<- struct{} // gets a value, if there is room, for each of them
}

// open opens the rig's database with the rig's clock and notifications. Tests
// that need nothing special of it leave that to the first read or write.
func (r *rig) open(opt store.Options) *store.DB {
	r.t.Helper()
	if opt.Clock == nil {
		opt.Clock = r.clock
	}
	if opt.Notify == nil {
		opt.Notify = r.notify
	}
	db, err := store.Open(r.ctx, r.url, opt)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { db.Close() })
	if r.db == nil {
		r.db = db
	}
	return db
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now
	r.now = now.Add(time.Microsecond)
	return now
}

func (r *rig) notify(topic string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.topics = append(r.topics, topic)
	select {
	case r.noticed <- struct{}{}:
	default:
	}
}

// told returns the notifications since the last call.
func (r *rig) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	topics := r.topics
	r.topics = nil
	return topics
}

func (r *rig) write(fn func(*store.Tx) error) {
	r.t.Helper()
	if r.db == nil {
		r.open(store.Options{})
	}
	if err := r.db.Write(r.ctx, fn); err != nil {
		r.t.Fatal(err)
	}
}

// fail runs fn in a transaction that must end with an error, and returns that.
func (r *rig) fail(fn func(*store.Tx) error) error {
	r.t.Helper()
	if r.db == nil {
		r.open(store.Options{})
	}
	err := r.db.Write(r.ctx, fn)
	if err == nil {
		r.t.Fatal("the transaction was committed; it should have failed")
	}
	return err
}

// read returns what one query finds.
func read[T any](r *rig, fn func(*store.Tx) (T, error)) T {
	r.t.Helper()
	v, err := tryRead(r, fn)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func tryRead[T any](r *rig, fn func(*store.Tx) (T, error)) (v T, err error) {
	if r.db == nil {
		r.open(store.Options{})
	}
	err = r.db.Read(r.ctx, func(tx *store.Tx) (err error) {
		v, err = fn(tx)
		return err
	})
	return v, err
}

func (r *rig) same(what string, want, got any) {
	r.t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// raw opens the database without package store, to look behind its back.
func (r *rig) raw() *sql.DB {
	r.t.Helper()
	driver, name := driverOf(r.url)
	db, err := sql.Open(driver, name)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { db.Close() })
	return db
}

// walk reads a whole list page by page and returns the ids in order.
func walk[T any](r *rig, order api.Order, limit int, list func(*store.Tx, store.Window) ([]T, error), at func(T) (key int64, id string)) []string {
	r.t.Helper()
	var ids []string
	win := store.Window{Limit: limit, Order: order}
	for range 1000 {
		page := read(r, func(tx *store.Tx) ([]T, error) { return list(tx, win) })
		for _, row := range page {
			key, id := at(row)
			ids = append(ids, id)
			win.After = &api.Cursor{Order: order, Key: key, ID: id}
		}
		if len(page) < limit {
			return ids
		}
	}
	r.t.Fatal("the list does not end")
	return nil
}

func at(d time.Duration) time.Time { return start.Add(d) }

func ptr[T any](v T) *T { return &v }

// text is a string that has been trouble for one database or another.
const text = "naïve \u0000 NUL, \u2028 line, \U0001F9EA emoji, e\u0301 combining, \u202e override, '\"\\?$1; -- /* <&>"

// environment adds an environment, which sessions need.
func (r *rig) environment(id api.EnvironmentID) *api.Environment {
	r.t.Helper()
	e := &api.Environment{ID: id, Type: "environment", Name: string(id), CreatedAt: start, UpdatedAt: start}
	r.write(func(tx *store.Tx) error { return tx.PutEnvironment(e) })
	return e
}

// session adds a session in an environment of its own.
func (r *rig) session(id api.SessionID) *store.Session {
	r.t.Helper()
	env := r.environment(api.EnvironmentID("env_" + id))
	s := newSession(id, env.ID)
	r.write(func(tx *store.Tx) error { return tx.InsertSession(s) })
	return s
}

func newSession(id api.SessionID, env api.EnvironmentID) *store.Session {
	return &store.Session{
		Session: api.Session{
			ID: id, Type: "session", Status: api.StatusIdle, EnvironmentID: env,
			Agent:     newAgent("agent_a", 1, start).Snapshot(),
			CreatedAt: start, UpdatedAt: start,
		},
		ThreadID: api.ThreadID("sthr_" + id),
	}
}

func eventID(n int) api.EventID { return api.EventID(fmt.Sprintf("sevt_%04d", n)) }
