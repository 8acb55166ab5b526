package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Postgres)
}

// replica opens a database as a process of its own would, with its notifications
// running until the test ends.
func replica(t *testing.T, url string) (db *store.DB, topics <-chan string) {
	t.Helper()
	heard := make(chan string, 1000)
	db, err := store.Open(t.Context(), url, store.Options{Notify: func(topic string) {
		if topic != store.TopicAll {
			heard <- topic
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return db.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
		db.Close()
	})
	return db, heard
}

func notify(t *testing.T, db *store.DB, topic string) {
	t.Helper()
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		tx.Notify(topic)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hears has one replica send until another, which may not be listening yet, has
// heard it.
func hears(t *testing.T, from *store.DB, to <-chan string, topic string) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	limit := time.After(30 * time.Second)
	for {
		notify(t, from, topic)
		select {
		case got := <-to:
			if got != topic {
				t.Fatalf("heard %q, want %q", got, topic)
			}
			return
		case <-again.C:
		case <-limit:
			t.Fatalf("%q was not heard", topic)
		}
	}
}

// drain forgets what was heard so far.
func drain(topics <-chan string) {
	for {
		select {
		case <-topics:
		default:
			return
		}
	}
}

func TestPostgresReplicasHearOfEachOthersWrites(t *testing.T) {
	t.Parallel()
	url := storetest.Postgres(t)
	a, heardA := replica(t, url)
	b, heardB := replica(t, url)
	hears(t, a, heardB, "to b")
	drain(heardA) // its own
	hears(t, b, heardA, "to a")
	drain(heardB)

	// A replica hears of its own writes at once, and not a second time by way of the
	// database. When b has heard of them, so has what listens for a.
	for i := range 3 {
		notify(t, a, fmt.Sprint("own ", i))
	}
	for told := map[string]bool{}; len(told) < 3; {
		if topic := <-heardB; strings.HasPrefix(topic, "own ") {
			told[topic] = true
		}
	}
	notify(t, b, "the end")
	var got []string
	for len(got) == 0 || got[len(got)-1] != "the end" {
		if topic := <-heardA; topic != "to a" { // sent more often than needed, above
			got = append(got, topic)
		}
	}
	if want := "own 0, own 1, own 2, the end"; strings.Join(got, ", ") != want {
		t.Errorf("a heard %q, want %q", got, want)
	}
}

// What nobody fetches does not pile up: it becomes one hint that stands for all.
func TestPostgresATooLongListOfNotificationsBecomesOne(t *testing.T) {
	t.Parallel()
	url := storetest.Postgres(t)
	silent, err := store.Open(t.Context(), url, store.Options{}) // its Run has not begun
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	all := make(chan struct{}, 1)
	db, err := store.Open(t.Context(), url, store.Options{Notify: func(topic string) {
		if topic == store.TopicAll {
			all <- struct{}{}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	defer g.Wait()
	defer cancel()
	g.Go(func() error { return db.Run(ctx) })
	<-all // it listens
	err = silent.Write(t.Context(), func(tx *store.Tx) error {
		for i := range 1001 {
			tx.Notify(fmt.Sprint("topic ", i))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	g.Go(func() error { return silent.Run(ctx) })
	<-all
}

func TestPostgresRestartOfTheServerIsSurvived(t *testing.T) {
	t.Parallel()
	dbURL := storetest.Postgres(t)
	a, _ := replica(t, dbURL)
	_, heardB := replica(t, dbURL)
	hears(t, a, heardB, "before")

	conn, err := pgx.Connect(t.Context(), dbURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// Every connection of the replicas is cut, those that listen too.
	_, err = conn.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	if err != nil {
		t.Fatal(err)
	}
	drain(heardB)
	hears(t, a, heardB, "after") // a's writes must work at once, b's ears within seconds
}

func TestPostgresClaimsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	db, _ := replica(t, storetest.Postgres(t))
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		if err := tx.PutEnvironment(&api.Environment{ID: "env_1", CreatedAt: tx.Now}); err != nil {
			return err
		}
		for i := range 2 {
			s := &store.Session{Session: api.Session{ID: api.SessionID(fmt.Sprint("sesn_", i)), EnvironmentID: "env_1"}}
			w := &store.Work{Work: api.Work{ID: api.WorkID(fmt.Sprint("work_", i)), EnvironmentID: "env_1", State: api.WorkQueued, Data: api.WorkData{ID: s.ID}}}
			if err := errors.Join(tx.InsertSession(s), tx.InsertWork(w)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The second claim is made, and ends, while the first is still open.
	err = db.Write(t.Context(), func(tx *store.Tx) error {
		first, err := tx.LockNextWork("env_1", tx.Now)
		if err != nil {
			return err
		}
		return db.Write(t.Context(), func(tx *store.Tx) error {
			second, err := tx.LockNextWork("env_1", tx.Now)
			if err == nil && (first.ID != "work_0" || second.ID != "work_1") {
				t.Errorf("claimed %s and %s", first.ID, second.ID)
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPostgresFullDiskIsErrFullAndLosesNothing(t *testing.T) {
	t.Parallel()
	dbURL := storetest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), dbURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var dataDir, name string
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('data_directory'), current_database()").Scan(&dataDir, &name); err != nil {
		t.Skip("the server does not tell where its data is, so it cannot be given a small disk:", err)
	}
	info, err := os.Stat(dataDir)
	if err != nil {
		t.Skip("the server is on another machine, so it cannot be given a small disk:", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	dir, resize := smallDisk(t, 16<<20)
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), os.Getenv(storetest.PostgresEnv))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	small := name + "_small"
	do := func(statement string) {
		t.Helper()
		if _, err := admin.Exec(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	do("CREATE TABLESPACE " + small + " LOCATION '" + dir + "'")
	defer do("DROP TABLESPACE " + small)
	do("CREATE DATABASE " + small + " TABLESPACE " + small)
	defer do("DROP DATABASE " + small + " WITH (FORCE)")

	u, err := url.Parse(dbURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + small
	db, _ := replica(t, u.String())
	kept := 0
	for ; err == nil && kept < 1000; kept++ {
		err = db.Write(t.Context(), putEnvironments(fmt.Sprint("env_", kept, "_"), 20, 1000))
	}
	kept-- // the last one failed
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("after %d writes: %v, want ErrFull", kept, err)
	}
	var rows int // counted without sorting, for which there is no room
	raw, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close(context.Background())
	if err := raw.QueryRow(t.Context(), "SELECT count(*) FROM environments").Scan(&rows); err != nil || rows != 20*kept {
		t.Errorf("on a full disk %d rows can be read, of %d; error %v", rows, 20*kept, err)
	}
	resize(64 << 20)
	if err := db.Write(t.Context(), putEnvironments("env_after_", 1, 1000)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// Replicas whose clocks differ take each other's leases for ended.
func TestClockSkewIsTheDistanceToTheServersClock(t *testing.T) {
	t.Parallel()
	url := storetest.Postgres(t)
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		db, err := store.Open(t.Context(), url, store.Options{Clock: func() time.Time { return time.Now().Add(ahead) }})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		skew, err := db.ClockSkew(t.Context())
		if off := (skew - ahead).Abs(); err != nil || off > time.Minute {
			t.Errorf("%s ahead: %s, %v", ahead, skew, err)
		}
	}
}
