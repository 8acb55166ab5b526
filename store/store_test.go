package store_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

func TestWhatIsNotADatabaseIsRefusedWithoutShowingThePassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "bailey.db", "mysql://u:hunter2@h/d", "sqlite:", "sqlite:/nonexistent-directory/x/b.db", "sqlite:.",
		"postgres://u:hunter2@127.0.0.1:1/d?connect_timeout=1", "postgres://u:hunter2@[::1/d", "postgres://u:hunter2@h/d?port=x",
	} {
		db, err := store.Open(t.Context(), url, store.Options{})
		if err == nil {
			db.Close()
			t.Errorf("%q was opened", url)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// Every migration has its way back, which leaves nothing and after which the way
// there can be gone again.
func TestMigrationsGoDownAndUpAgain(t *testing.T) {
	t.Parallel()
	for name, newDB := range map[string]func(testing.TB) string{"sqlite": storetest.SQLite, "pgx": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := newDB(t)
			up := func() {
				db, err := store.Open(t.Context(), url, store.Options{})
				if err != nil {
					t.Fatal(err)
				}
				db.Close()
			}
			up()
			raw, err := sql.Open(name, strings.TrimPrefix(url, "sqlite:"))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			downs, err := filepath.Glob("migrations/*.down.sql")
			if err != nil {
				t.Fatal(err)
			}
			ups, _ := filepath.Glob("migrations/*.up.sql")
			if len(downs) == 0 || len(downs) != len(ups) {
				t.Errorf("%d migrations up and %d down", len(ups), len(downs))
			}
			slices.Sort(downs)
			for _, file := range slices.Backward(downs) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := raw.Exec(string(text)); err != nil {
					t.Fatalf("%s: %v", file, err)
				}
			}
			tables := map[string]string{
				"sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'table'",
				"pgx":    "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'",
			}[name]
			var left int
			if err := raw.QueryRow(tables).Scan(&left); err != nil || left != 1 {
				t.Errorf("%d tables are left, want schema_migrations alone; error %v", left, err)
			}
			if _, err := raw.Exec("DELETE FROM schema_migrations"); err != nil {
				t.Fatal(err)
			}
			up()
		})
	}
}
