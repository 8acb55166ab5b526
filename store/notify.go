package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// On PostgreSQL, processes tell each other of their writes by NOTIFY. It is sent
// after the commit, by one goroutine for all writes: within a transaction it would
// make commits wait for each other, of every session in the database. A process
// that dies in between tells nobody; a notification is only a hint, and those who
// wait for one also look by themselves now and then.

// An outbox is the topics that other processes are still to be told of.
type outbox struct {
	filled chan struct{} // holds a value while there may be topics

	mu     sync.Mutex
	topics map[string]struct{} // guarded by mu
}

// outboxMax bounds an outbox. What is too much for it becomes TopicAll.
const outboxMax = 1000

func newOutbox() *outbox {
	return &outbox{filled: make(chan struct{}, 1), topics: map[string]struct{}{}}
}

func (o *outbox) add(topics []string) {
	if len(topics) == 0 {
		return
	}
	o.mu.Lock()
	for _, topic := range topics {
		o.topics[topic] = struct{}{}
	}
	if len(o.topics) > outboxMax {
		o.topics = map[string]struct{}{TopicAll: {}}
	}
	o.mu.Unlock()
	select {
	case o.filled <- struct{}{}:
	default:
	}
}

func (o *outbox) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	topics := make([]string, 0, len(o.topics))
	for topic := range o.topics {
		topics = append(topics, topic)
	}
	clear(o.topics)
	return topics
}

// reconnectEvery is the pause after a failure to reach the server.
const reconnectEvery = time.Second

// Run exchanges notifications with other processes until ctx ends. On SQLite there
// are none. A lost connection is made again; what was missed meanwhile is covered
// by TopicAll.
func (db *DB) Run(ctx context.Context) error {
	if db.others == nil {
		<-ctx.Done()
		return nil
	}
	var g errgroup.Group
	g.Go(func() error {
		db.keep(ctx, "listens for notifications", db.listen)
		return nil
	})
	g.Go(func() error {
		db.keep(ctx, "sends notifications", db.tell)
		return nil
	})
	return g.Wait()
}

// keep runs what only a lost connection ends, until ctx ends.
func (db *DB) keep(ctx context.Context, what string, run func(context.Context) error) {
	for {
		err := run(ctx)
		if ctx.Err() != nil {
			return
		}
		db.opt.Logger.Warn("lost the connection that "+what+"; reconnecting", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconnectEvery):
		}
	}
}

func (db *DB) tell(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-db.others.filled:
		}
		topics := db.others.take()
		_, err := db.write.ExecContext(ctx, "SELECT pg_notify('bailey', $1 || ' ' || topic) FROM unnest($2::text[]) AS topic", db.listenID, topics)
		if err != nil {
			db.others.add(topics)
			return err
		}
	}
}

func (db *DB) listen(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, db.url)
	if err != nil {
		return errors.New("connect failed") // the driver's text may hold the password
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN bailey"); err != nil {
		return err
	}
	db.opt.Notify(TopicAll) // something may have happened while nobody listened
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if from, topic, ok := strings.Cut(n.Payload, " "); ok && from != db.listenID {
			db.opt.Notify(topic)
		}
	}
}
