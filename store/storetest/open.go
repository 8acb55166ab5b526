package storetest

import (
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

var openTests = []test{
	{"ADatabaseOpenedAgainKeepsItsRows", func(r *rig) {
		r.write(func(tx *store.Tx) error { return tx.PutEnvironment(&api.Environment{ID: "env_1", CreatedAt: start}) })
		if err := r.db.Close(); err != nil {
			r.t.Fatal(err)
		}
		if err := r.db.Close(); err != nil {
			r.t.Errorf("closing twice: %v", err)
		}
		if err := r.db.Ping(r.ctx); err == nil {
			r.t.Error("a closed database answers")
		}
		if err := r.db.Write(r.ctx, func(*store.Tx) error { return nil }); err == nil {
			r.t.Error("a closed database accepts writes")
		}
		r.db = nil
		r.open(store.Options{})
		if err := r.db.Ping(r.ctx); err != nil {
			r.t.Error(err)
		}
		read(r, func(tx *store.Tx) (*api.Environment, error) { return tx.Environment("env_1") })
	}},

	{"SeveralProcessesStartingAtOnceMigrateOnce", func(r *rig) {
		var g errgroup.Group
		for range 6 {
			g.Go(func() error {
				db, err := store.Open(r.ctx, r.url, store.Options{})
				if err != nil {
					return err
				}
				return db.Close()
			})
		}
		if err := g.Wait(); err != nil {
			r.t.Fatal(err)
		}
		r.open(store.Options{})
		var rows, versions int
		err := r.raw().QueryRow("SELECT count(*), count(DISTINCT version) FROM schema_migrations").Scan(&rows, &versions)
		if err != nil || rows == 0 || rows != versions {
			r.t.Errorf("%d rows for %d migrations, error %v", rows, versions, err)
		}
	}},

	{"ADatabaseOfANewerVersionIsRefused", func(r *rig) {
		r.open(store.Options{}).Close()
		if _, err := r.raw().Exec("INSERT INTO schema_migrations (version, applied_at) VALUES (1000000, 0)"); err != nil {
			r.t.Fatal(err)
		}
		db, err := store.Open(r.ctx, r.url, store.Options{})
		if err == nil {
			db.Close()
			r.t.Fatal("it was opened")
		}
		if !strings.Contains(err.Error(), "run the newer version") {
			r.t.Errorf("the error does not say what to do: %v", err)
		}
	}},

	{"AFailedMigrationLeavesNothingBehind", func(r *rig) {
		raw := r.raw()
		// The last table of the schema is in the way.
		if _, err := raw.Exec("CREATE TABLE work (id TEXT)"); err != nil {
			r.t.Fatal(err)
		}
		if db, err := store.Open(r.ctx, r.url, store.Options{}); err == nil {
			db.Close()
			r.t.Fatal("it was opened")
		}
		if _, err := raw.Exec("DROP TABLE work"); err != nil {
			r.t.Fatal(err)
		}
		r.open(store.Options{})
	}},

	{"TheEngineHasAName", func(r *rig) {
		if name := r.open(store.Options{}).Engine(); !slices.Contains([]string{"sqlite", "postgres"}, name) {
			r.t.Errorf("engine %q", name)
		}
	}},
}
