package store_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/store/storetest"
)

func benchDB(b *testing.B, url string) *store.DB {
	b.Helper()
	db, err := store.Open(b.Context(), url, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
		db.Close()
	})
	return db
}

func benchSession(b *testing.B, db *store.DB, id api.SessionID) {
	b.Helper()
	err := db.Write(b.Context(), func(tx *store.Tx) error {
		env := &api.Environment{ID: "env_" + api.EnvironmentID(id), CreatedAt: tx.Now}
		if err := tx.PutEnvironment(env); err != nil {
			return err
		}
		return tx.InsertSession(&store.Session{Session: api.Session{ID: id, EnvironmentID: env.ID, CreatedAt: tx.Now, UpdatedAt: tx.Now}})
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAppend appends one event a transaction, as a client's POST does, from
// one goroutine and from 64 with a session each.
func BenchmarkAppend(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchAppend(b, storetest.SQLite) })
	b.Run("postgres", func(b *testing.B) { benchAppend(b, storetest.Postgres) })
}

func benchAppend(b *testing.B, newDB func(testing.TB) string) {
	body := &api.UserMessage{Content: api.Content{api.TextBlock("How much is the fish?")}}
	one := func(ctx context.Context, db *store.DB, id api.SessionID, n int64) error {
		return db.Write(ctx, func(tx *store.Tx) error {
			s, err := tx.LockSession(id)
			if err != nil {
				return err
			}
			if _, err := tx.Append(s, []api.Draft{{ID: api.EventID(fmt.Sprint("sevt_", n)), Body: body}}); err != nil {
				return err
			}
			tx.Notify("session " + string(id))
			return tx.UpdateSession(s)
		})
	}
	b.Run("serial", func(b *testing.B) {
		db := benchDB(b, newDB(b))
		benchSession(b, db, "s")
		for n := int64(0); b.Loop(); n++ {
			if err := one(b.Context(), db, "s", n); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("sessions64", func(b *testing.B) {
		db := benchDB(b, newDB(b))
		for i := range 64 {
			benchSession(b, db, api.SessionID(fmt.Sprint("s", i)))
		}
		var next, n atomic.Int64
		b.SetParallelism(32)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			id := api.SessionID(fmt.Sprint("s", next.Add(1)-1))
			for pb.Next() {
				if err := one(b.Context(), db, id, n.Add(1)); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}
