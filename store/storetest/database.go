package storetest

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresEnv is the environment variable with the URL of a PostgreSQL server on
// which tests may create databases. .ci/with-postgres sets it.
const PostgresEnv = "BAILEY_TEST_POSTGRES"

// SQLite returns the URL of a new database file.
func SQLite(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "bailey.db")
}

// Postgres returns the URL of a new, empty PostgreSQL database, dropped when t
// ends. Without a server the test is skipped, and fails under CI=true.
func Postgres(t testing.TB) string {
	t.Helper()
	server := os.Getenv(PostgresEnv)
	if server == "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not set, and CI=true allows no gap; run the tests with `make test` or under .ci/with-postgres", PostgresEnv)
		}
		t.Skipf("%s is not set; run the tests with `make test` or under .ci/with-postgres", PostgresEnv)
	}
	name := "bailey_" + strings.ToLower(rand.Text())
	administer(t, server, "CREATE DATABASE "+name+" STRATEGY FILE_COPY") // the quickest for an empty one
	t.Cleanup(func() { administer(t, server, "DROP DATABASE "+name+" WITH (FORCE)") })

	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("%s is not a URL", PostgresEnv) // the error's text may hold the password
	}
	u.Path = "/" + name
	return u.String()
}

func administer(t testing.TB, server, statement string) {
	t.Helper()
	// Not the test's context: that is over when its databases are dropped.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatalf("connect to the server that %s names: %v", PostgresEnv, err)
	}
	defer conn.Close(ctx)
	for {
		_, err := conn.Exec(ctx, statement)
		if err == nil {
			return
		}
		// Making and dropping a database needs a checkpoint of the whole server, and
		// there is none while another test has one of its disks full.
		if !strings.Contains(err.Error(), "checkpoint request failed") || ctx.Err() != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Blocked reports whether somebody comes to wait for a lock in the PostgreSQL database at
// dbURL before done is closed.
func Blocked(t testing.TB, dbURL string, done <-chan struct{}) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dbURL)
	if err != nil {
		t.Errorf("connect to the server that %s names: %v", PostgresEnv, err)
		return false
	}
	defer conn.Close(ctx)
	for {
		var waiting bool
		err := conn.QueryRow(ctx, "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		if err != nil {
			t.Errorf("look for locks: %v", err)
			return false
		}
		if waiting {
			return true
		}
		select {
		case <-done:
			return false
		case <-time.After(time.Millisecond):
		}
	}
}

// driverOf splits a database URL into what database/sql wants.
func driverOf(dbURL string) (driver, name string) {
	if file, ok := strings.CutPrefix(dbURL, "sqlite:"); ok {
		return "sqlite", "file:" + file + "?_pragma=busy_timeout(10000)"
	}
	return "pgx", dbURL
}
