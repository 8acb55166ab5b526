package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.SQLite)
}

func TestSQLiteFileNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "100%41.db", "what?.db", "c#.db", "naïve.db", "x&_pragma=foreign_keys(0).db"} {
		open(t, filepath.Join(dir, name))
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// What users said, and the hashes of keys, were readable for everybody who could
// enter the directory.
func TestSQLiteFilesAreTheirOwnersAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bailey.db")
	open(t, path)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, error %v", filepath.Base(path+suffix), info.Mode(), err)
		}
	}
}

// A row nested deeper than a reader goes made every list of its session an error.
func TestARowThatCannotBeReadDoesNotSpoilItsSessionsLists(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bailey.db")
	db := open(t, path)
	ctx := context.Background()
	err := db.Write(ctx, func(tx *store.Tx) error {
		if err := tx.PutEnvironment(&api.Environment{ID: "env_1", CreatedAt: tx.Now}); err != nil {
			return err
		}
		s := &store.Session{Session: api.Session{ID: "sesn_1", EnvironmentID: "env_1", CreatedAt: tx.Now, UpdatedAt: tx.Now}}
		if err := tx.InsertSession(s); err != nil {
			return err
		}
		_, err := tx.Append(s, []api.Draft{
			{ID: "sevt_1", Body: &api.AgentMessage{}}, {ID: "sevt_2", Body: &api.AgentToolUse{Name: "bash", Input: []byte(`{}`)}}, {ID: "sevt_3", Body: &api.AgentMessage{}},
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	deep := `{"name":"bash","input":` + strings.Repeat(`{"a":`, 20_000) + `1` + strings.Repeat(`}`, 20_001)
	if _, err := raw.Exec("UPDATE events SET body = ? WHERE id = 'sevt_2'", deep); err != nil {
		t.Fatal(err)
	}
	err = db.Read(ctx, func(tx *store.Tx) error {
		list, _, err := tx.Events("sesn_1", api.EventFilter{}, store.Window{Limit: 10, Order: api.Ascending})
		if err != nil {
			return err
		}
		feed, _, err := tx.Feed("sesn_1", 0, 10)
		if err != nil {
			return err
		}
		log, err := tx.Entries("sesn_1", 0)
		for name, entries := range map[string][]api.Entry{"list": list, "feed": feed, "entries": log} {
			if len(entries) != 3 {
				t.Errorf("%s: %d events", name, len(entries))
				continue
			}
			if e, ok := entries[1].Event.Body.(*api.SessionError); !ok || entries[1].Event.ID != "sevt_2" || !strings.Contains(e.Error.Message, "agent.tool_use") {
				t.Errorf("%s: the unreadable event is %+v", name, entries[1].Event)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, path string) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), "sqlite:"+path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// putEnvironments returns a write of n environments with sizeBytes of name each.
func putEnvironments(prefix string, n, sizeBytes int) func(*store.Tx) error {
	return func(tx *store.Tx) error {
		for i := range n {
			e := &api.Environment{ID: api.EnvironmentID(fmt.Sprint(prefix, i)), Name: strings.Repeat("x", sizeBytes), CreatedAt: tx.Now}
			if err := tx.PutEnvironment(e); err != nil {
				return err
			}
		}
		return nil
	}
}

func environments(t *testing.T, db *store.DB) map[api.EnvironmentID]bool {
	t.Helper()
	ids := map[api.EnvironmentID]bool{}
	err := db.Read(context.Background(), func(tx *store.Tx) error {
		rows, err := tx.Environments(false, store.Window{Limit: 1e6, Order: api.Ascending})
		for _, e := range rows {
			ids[e.ID] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// smallDisk mounts a file system of its own and returns its directory and a
// function that changes its size.
func smallDisk(t *testing.T, sizeBytes int) (dir string, resize func(sizeBytes int)) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", sizeBytes)); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatal("mount a small disk:", err)
		}
		t.Skip("a small disk to fill up can only be mounted by root:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func(sizeBytes int) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprint("size=", sizeBytes)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDiskLosesNothingThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	dir, resize := smallDisk(t, 1<<20)
	path := filepath.Join(dir, "bailey.db")
	db := open(t, path)
	kept := 0
	var err error
	for ; err == nil && kept < 1000; kept++ {
		err = db.Write(t.Context(), putEnvironments(fmt.Sprint("env_", kept, "_"), 1, 10_000))
	}
	kept-- // the last one failed
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("after %d writes: %v, want ErrFull", kept, err)
	}
	for range 3 { // and it stays a clear error
		if err := db.Write(t.Context(), putEnvironments("env_more_", 1, 200_000)); !errors.Is(err, store.ErrFull) {
			t.Errorf("a further write: %v, want ErrFull", err)
		}
	}
	if rows := environments(t, db); len(rows) != kept {
		t.Errorf("on a full disk %d rows can be read, of %d", len(rows), kept)
	}
	resize(4 << 20)
	if err := db.Write(t.Context(), putEnvironments("env_after_", 1, 10_000)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	db.Close()
	if rows := environments(t, open(t, path)); len(rows) != kept+1 {
		t.Errorf("opened again it has %d rows, want %d", len(rows), kept+1)
	}
}

// Writes that arrive together share a commit. When the disk fills up in the middle
// of one, SQLite takes the whole transaction back: those before it must not be
// told that they are durable, and those after it must not be made durable one by
// one and then told that they failed.
func TestFullDiskInOneWriteOfAGroupFailsTheGroupAsOne(t *testing.T) {
	t.Parallel()
	dir, resize := smallDisk(t, 24<<20)
	synctest.Test(t, func(t *testing.T) {
		db := open(t, filepath.Join(dir, "bailey.db"))
		defer db.Close()
		// The first write waits until all others are queued behind it.
		release := make(chan struct{})
		writes := []func(*store.Tx) error{
			func(tx *store.Tx) error { <-release; return putEnvironments("env_a_", 1, 10)(tx) },
			putEnvironments("env_b_", 1, 10),
			// More than SQLite keeps in memory, so that it spills to the disk before the commit.
			putEnvironments("env_huge_", 60, 1<<20),
			putEnvironments("env_c_", 1, 10),
			putEnvironments("env_d_", 1, 10),
		}
		errs := make([]error, len(writes))
		done := make(chan struct{})
		for i, fn := range writes {
			go func() {
				errs[i] = db.Write(context.Background(), fn)
				done <- struct{}{}
			}()
			synctest.Wait()
		}
		close(release)
		for range writes {
			<-done
		}
		if !errors.Is(errs[2], store.ErrFull) {
			t.Errorf("the write that filled the disk: %v, want ErrFull", errs[2])
		}
		rows := environments(t, db)
		for i, id := range []api.EnvironmentID{"env_a_0", "env_b_0", "env_huge_0", "env_c_0", "env_d_0"} {
			if rows[id] != (errs[i] == nil) {
				t.Errorf("%s: there is %v, its writer was told %v", id, rows[id], errs[i])
			}
		}
		resize(128 << 20)
		if err := db.Write(context.Background(), putEnvironments("env_after_", 1, 10)); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}

func TestAClosedDatabaseHoldsNoFileOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bailey.db")
	db := open(t, path)
	if err := db.Write(t.Context(), putEnvironments("env_", 1, 10)); err != nil {
		t.Fatal(err)
	}
	environments(t, db)
	db.Close()
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(files) == 0 {
		t.Skip("needs /proc:", err)
	}
	for _, f := range files {
		if name, err := os.Readlink(f); err == nil && strings.HasPrefix(name, path) {
			t.Errorf("%s is still open", name)
		}
	}
}

func TestAWriterOfAnotherProcessIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bailey.db")
	a, b := open(t, path), open(t, path)
	holding, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- a.Write(context.Background(), func(tx *store.Tx) error {
			close(holding)
			<-release
			return putEnvironments("env_a_", 1, 10)(tx)
		})
	}()
	<-holding
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	if err := b.Write(t.Context(), putEnvironments("env_b_", 1, 10)); err != nil {
		t.Error(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	if rows := environments(t, b); len(rows) != 2 {
		t.Errorf("%d rows, want 2", len(rows))
	}
}
