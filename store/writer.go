package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// SQLite has one writer and makes every commit wait for the disk. So writes that
// arrive while the disk is busy share the next commit: each runs in a savepoint
// of its own, in order of arrival, sees what those before it did, and fails alone.
// All are told the outcome after the one commit that makes them durable.

// A write is one call of Write.
type write struct {
	ctx  context.Context
	fn   func(*Tx) error
	tx   *Tx
	err  error
	done chan struct{} // closed once err is final
}

// groupMax bounds the writes that share a commit, and so how long one waits for
// the others.
const groupMax = 64

var errClosed = errors.New("store: the database is closed")

func (db *DB) groupWrite(ctx context.Context, fn func(*Tx) error) error {
	w := &write{ctx: ctx, fn: fn, done: make(chan struct{})}
	select {
	case db.writes <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.done:
		return errClosed
	}
	<-w.done
	return w.err
}

// A writer runs every write of a SQLite database. It owns the one connection that
// may write, and that connection's compiled statements.
type writer struct {
	db    *DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
}

func (wr *writer) run() {
	defer close(wr.db.idle)
	defer wr.close()
	for {
		select {
		case <-wr.db.done:
			return
		case first := <-wr.db.writes:
			wr.group(first)
		}
	}
}

// close closes the connection, which SQLite keeps open, with its files, for as long
// as a statement of it is.
func (wr *writer) close() {
	for _, stmt := range wr.stmts {
		stmt.Close()
	}
	wr.conn.Close()
}

// group runs first and whatever arrives meanwhile, and commits it as one.
func (wr *writer) group(first *write) {
	var group []*write
	err := wr.exec("BEGIN IMMEDIATE")
	for w := first; w != nil; {
		group = append(group, w)
		if err == nil {
			err = wr.attempt(w)
		}
		w = nil
		if err == nil && len(group) < groupMax {
			select {
			case w = <-wr.db.writes:
			default:
			}
		}
	}
	if err == nil {
		err = wr.exec("COMMIT")
	}
	if err != nil {
		// A commit that failed for want of room leaves the transaction open.
		_ = wr.exec("ROLLBACK")
	}
	for _, w := range group {
		switch {
		case w.err != nil:
		case err != nil:
			w.err = fmt.Errorf("commit: %w", err)
		default:
			w.err = wr.db.committed(w.tx)
		}
		close(w.done)
	}
}

// attempt runs one write in a savepoint and takes it back if it fails. It returns
// an error if that took back the whole group.
func (wr *writer) attempt(w *write) (lost error) {
	if w.err = w.ctx.Err(); w.err != nil {
		return nil
	}
	// Its statements run to their end even if the caller gives up: SQLite answers an
	// interrupted write by taking back the transaction, and so the writes of others.
	w.tx = wr.db.newTx(context.WithoutCancel(w.ctx), wr.conn)
	w.tx.stmts = wr.stmts
	if err := wr.exec("SAVEPOINT one"); err != nil {
		return err
	}
	if w.err = w.tx.classify(w.call()); w.err == nil {
		w.err = wr.db.beforeCommit()
	}
	if w.err != nil {
		lost = wr.exec("ROLLBACK TO one")
	}
	if lost == nil {
		lost = wr.exec("RELEASE one")
	}
	// The savepoint is gone: SQLite takes back the transaction when the disk fills up
	// in the middle of a statement. What fn made of that is not for the others' eyes.
	if lost != nil && errors.Is(w.err, ErrFull) {
		lost = w.err
	}
	return lost
}

// call runs the caller's function. A panic in it must not take the writer, and
// with it every other caller, down.
func (w *write) call() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("store: a transaction panicked: %v", p)
		}
	}()
	return w.fn(w.tx)
}

// exec runs a statement of the writer's own, whoever's request has ended.
func (wr *writer) exec(query string) error {
	tx := wr.db.newTx(context.Background(), wr.conn)
	tx.stmts = wr.stmts
	_, err := tx.exec(query)
	return err
}
