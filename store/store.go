// Package store keeps Bailey's state in SQLite or PostgreSQL. It is the only
// package that speaks SQL, and package control is the only one that uses it: what
// the rows mean, and which of them are written together, is decided there.
//
// Everything happens in a transaction: [DB.Read] or [DB.Write] hands a [Tx] to a
// function; the methods of Tx are the queries, in one file a noun. Both engines
// run the same SQL text; what differs is in dialect.go. A commit that has
// returned is on disk (SQLite runs with WAL and synchronous=FULL).
//
// Start reading at [Open]; the contract of both engines is store/storetest.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver of database/sql
	_ "modernc.org/sqlite"             // the "sqlite" driver
)

// The sentinels of this package. Control turns them into public errors.
var (
	ErrNotFound  = errors.New("store: no such row")
	ErrDuplicate = errors.New("store: a row with this key exists")
	ErrFull      = errors.New("store: no room left on the database's disk")
)

// Options of [Open]. The zero value is good for production.
type Options struct {
	Logger *slog.Logger

	// Clock gives the time of each transaction; default time.Now.
	Clock func() time.Time

	// Notify is called with each topic of a committed write, on this process and,
	// on PostgreSQL, for the writes of others too ([DB.Run]). It must not block.
	Notify func(topic string)

	// BeforeCommit and AfterCommit let a test lose a commit or its reply: an
	// error of the first rolls back, one of the second is returned although the
	// write is durable.
	BeforeCommit, AfterCommit func() error
}

// A DB is an open database, safe for concurrent use.
type DB struct {
	d     *dialect
	write *sql.DB // SQLite: one connection, the only writer
	read  *sql.DB
	url   string
	opt   Options

	listenID string  // tells our own notifications from others'
	others   *outbox // PostgreSQL: what other processes are to be told; else nil
	closing  sync.Once

	writes chan *write   // SQLite: to the one writer; nil on PostgreSQL
	done   chan struct{} // closed by Close
	idle   chan struct{} // closed by the writer when it has ended
}

// Open opens the database named by a URL, "sqlite:PATH" or "postgres://…", and
// brings its schema up to date. A database made by a newer version is refused.
func Open(ctx context.Context, dbURL string, opt Options) (*DB, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Clock == nil {
		opt.Clock = time.Now
	}
	if opt.Notify == nil {
		opt.Notify = func(string) {}
	}
	db := &DB{url: dbURL, opt: opt, listenID: rand.Text(), done: make(chan struct{})}
	var err error
	switch {
	case strings.HasPrefix(dbURL, "sqlite:"):
		err = db.openSQLite(strings.TrimPrefix(dbURL, "sqlite:"))
	case strings.HasPrefix(dbURL, "postgres://"), strings.HasPrefix(dbURL, "postgresql://"):
		err = db.openPostgres(dbURL)
	default:
		return nil, fmt.Errorf("open database: the URL must begin with sqlite: or postgres://")
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := db.migrate(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("bring the database's schema up to date: %w", err)
	}
	return db, nil
}

// The bounds of the connection pools.
const (
	sqliteReaders = 8
	postgresConns = 24
)

func (db *DB) openSQLite(path string) error {
	if path == "" {
		return errors.New("sqlite: needs a file name")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	// A new file is for its owner only: it holds what users said. Those beside it
	// take after it.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	// The order matters: busy_timeout first, so that switching to WAL waits for
	// another process instead of failing.
	pragmas := url.Values{"_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "temp_store(MEMORY)", "cache_size(-16000)",
	}}
	dsn := func(extra string) string {
		return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode() + extra
	}
	if db.write, err = sql.Open("sqlite", dsn("")); err != nil { // its transactions begin with BEGIN IMMEDIATE
		return err
	}
	db.write.SetMaxOpenConns(1)
	if db.read, err = sql.Open("sqlite", dsn("&_pragma=query_only(1)")); err != nil {
		db.write.Close()
		return err
	}
	db.read.SetMaxOpenConns(sqliteReaders)
	db.read.SetMaxIdleConns(sqliteReaders)
	db.d = sqliteDialect
	conn, err := db.write.Conn(context.Background())
	if err != nil {
		return errors.Join(err, db.write.Close(), db.read.Close())
	}
	db.writes, db.idle = make(chan *write), make(chan struct{})
	go (&writer{db: db, conn: conn, stmts: map[string]*sql.Stmt{}}).run()
	return nil
}

func (db *DB) openPostgres(dsn string) error {
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return errors.New("the postgres URL could not be read") // the driver's text may hold the password
	}
	pool.SetMaxOpenConns(postgresConns)
	pool.SetMaxIdleConns(postgresConns)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	db.write, db.read, db.d = pool, pool, postgresDialect
	db.others = newOutbox()
	return nil
}

// Engine is "sqlite" or "postgres".
func (db *DB) Engine() string { return db.d.name }

// Close closes the database. Running transactions fail.
func (db *DB) Close() error {
	var err error
	db.closing.Do(func() {
		close(db.done)
		if db.idle != nil {
			<-db.idle
		}
		err = db.write.Close()
		if db.read != db.write {
			err = errors.Join(err, db.read.Close())
		}
	})
	return err
}

// Ping asks the database a question.
func (db *DB) Ping(ctx context.Context) error {
	return db.Read(ctx, func(tx *Tx) error {
		_, err := tx.count("SELECT count(*) FROM schema_migrations")
		return err
	})
}

// A Tx is one transaction. Everything written in it has the time Now.
type Tx struct {
	Now    time.Time // UTC, whole microseconds
	ctx    context.Context
	q      querier
	stmts  map[string]*sql.Stmt // compiled statements of q, kept by the SQLite writer; else nil
	d      *dialect
	topics []string
}

// A querier is a connection or a transaction of database/sql.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// Read runs fn in a read-only transaction: all its queries see the database at one
// moment.
func (db *DB) Read(ctx context.Context, fn func(*Tx) error) error {
	sqlTx, err := db.begin(ctx, db.read, db.d.snapshot)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	tx := db.newTx(ctx, sqlTx)
	return tx.classify(fn(tx))
}

// Write runs fn in a transaction and commits it if fn returns nil. fn must not
// call Write. An error may, rarely, mean that the commit happened and only its
// reply was lost; callers that cannot bear that check again.
func (db *DB) Write(ctx context.Context, fn func(*Tx) error) error {
	if db.writes != nil {
		return db.groupWrite(ctx, fn)
	}
	sqlTx, err := db.begin(ctx, db.write, nil)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback() // after a commit this does nothing
	tx := db.newTx(ctx, sqlTx)
	if err := fn(tx); err != nil {
		return tx.classify(err)
	}
	if err := db.beforeCommit(); err != nil {
		return err
	}
	if err := sqlTx.Commit(); err != nil {
		return tx.classify(fmt.Errorf("commit: %w", err))
	}
	return db.committed(tx)
}

// begin starts a transaction. When the server was restarted, each connection of the
// pool fails once; nothing has happened yet, so the next one is tried.
func (db *DB) begin(ctx context.Context, pool *sql.DB, opt *sql.TxOptions) (*sql.Tx, error) {
	for tries := 0; ; tries++ {
		sqlTx, err := pool.BeginTx(ctx, opt)
		if err == nil {
			return sqlTx, nil
		}
		if tries == postgresConns || !db.d.cut(err) {
			return nil, db.newTx(ctx, nil).classify(fmt.Errorf("begin: %w", err))
		}
	}
}

func (db *DB) newTx(ctx context.Context, q querier) *Tx {
	return &Tx{Now: db.opt.Clock().UTC().Truncate(time.Microsecond), ctx: ctx, q: q, d: db.d}
}

func (db *DB) beforeCommit() error {
	if db.opt.BeforeCommit == nil {
		return nil
	}
	return db.opt.BeforeCommit()
}

// committed tells the world of a durable transaction.
func (db *DB) committed(tx *Tx) error {
	for _, topic := range tx.topics {
		db.opt.Notify(topic)
	}
	if db.others != nil {
		db.others.add(tx.topics)
	}
	if db.opt.AfterCommit == nil {
		return nil
	}
	return db.opt.AfterCommit()
}

// Alone keeps other transactions that call it waiting until this one ends: for what
// replicas that start at once must do one after the other.
func (tx *Tx) Alone() error {
	if tx.d.alone == "" {
		return nil // SQLite writes one transaction at a time
	}
	_, err := tx.exec(tx.d.alone)
	return err
}

// TopicAll is the topic of a notification that stands for all others.
const TopicAll = "*"

// Notify asks for Options.Notify(topic) once the transaction has committed.
func (tx *Tx) Notify(topic string) {
	if !slices.Contains(tx.topics, topic) {
		tx.topics = append(tx.topics, topic)
	}
}

// classify gives the engine's errors the names of this package.
func (tx *Tx) classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotFound
	case tx.d.duplicate(err):
		return fmt.Errorf("%w (%w)", ErrDuplicate, err)
	case tx.d.full(err):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return err
}

// statementsMax bounds the compiled statements kept: more than the fixed queries
// of this package, and some of the appends of several events at once.
const statementsMax = 256

// compiled returns the kept form of a query, or nil where it is to be run as
// text.
func (tx *Tx) compiled(query string) *sql.Stmt {
	if tx.stmts == nil {
		return nil
	}
	if stmt := tx.stmts[query]; stmt != nil || len(tx.stmts) >= statementsMax {
		return stmt
	}
	stmt, err := tx.q.PrepareContext(tx.ctx, query)
	if err != nil {
		return nil // running the text will say what is wrong with it
	}
	tx.stmts[query] = stmt
	return stmt
}

func (tx *Tx) exec(query string, args ...any) (rows int64, err error) {
	var res sql.Result
	if stmt := tx.compiled(query); stmt != nil {
		res, err = stmt.ExecContext(tx.ctx, args...)
	} else {
		res, err = tx.q.ExecContext(tx.ctx, tx.d.rebind(query), args...)
	}
	if err != nil {
		return 0, tx.classify(err)
	}
	return res.RowsAffected()
}

func (tx *Tx) row(query string, args ...any) *sql.Row {
	if stmt := tx.compiled(query); stmt != nil {
		return stmt.QueryRowContext(tx.ctx, args...)
	}
	return tx.q.QueryRowContext(tx.ctx, tx.d.rebind(query), args...)
}

func (tx *Tx) query(query string, args ...any) (*sql.Rows, error) {
	if stmt := tx.compiled(query); stmt != nil {
		return stmt.QueryContext(tx.ctx, args...)
	}
	return tx.q.QueryContext(tx.ctx, tx.d.rebind(query), args...)
}

func (tx *Tx) count(query string, args ...any) (int64, error) {
	var n int64
	err := tx.row(query, args...).Scan(&n)
	return n, tx.classify(err)
}

// collect runs a query and scans every row.
func collect[T any](tx *Tx, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.query(query, args...)
	if err != nil {
		return nil, tx.classify(err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, tx.classify(rows.Err())
}

// one scans a single row.
func one[T any](tx *Tx, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	v, err := scan(tx.row(query, args...))
	return v, tx.classify(err)
}

type scanner interface{ Scan(dest ...any) error }

// must is for updates of rows that the transaction has already read.
func must(rows int64, err error) error {
	if err == nil && rows != 1 {
		return ErrNotFound
	}
	return err
}

// -- migrations ------------------------------------------------------------------

//go:embed migrations/*.sql
var migrations embed.FS

func (db *DB) migrate(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/*.up.sql")
	if err != nil {
		return err
	}
	slices.Sort(files)
	return db.Write(ctx, func(tx *Tx) error {
		if err := tx.Alone(); err != nil {
			return err
		}
		if _, err := tx.exec("CREATE TABLE IF NOT EXISTS schema_migrations (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)"); err != nil {
			return err
		}
		done, err := tx.count("SELECT count(*) FROM schema_migrations")
		if err != nil {
			return err
		}
		if int(done) > len(files) {
			return fmt.Errorf("the database has %d migrations and this version of bailey knows %d: run the newer version", done, len(files))
		}
		for i, name := range files[done:] {
			text, err := migrations.ReadFile(name)
			if err != nil {
				return err
			}
			for _, stmt := range statements(string(text)) {
				if _, err := tx.exec(stmt); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			if _, err := tx.exec("INSERT INTO schema_migrations (version, applied_at) VALUES (?, ?)", int(done)+i+1, micros(tx.Now)); err != nil {
				return err
			}
		}
		return nil
	})
}

// statements splits a migration at semicolons that end a line and drops comments.
func statements(text string) []string {
	var out []string
	for s := range strings.SplitSeq(text, ";\n") {
		var kept []string
		for line := range strings.Lines(s) {
			code, _, _ := strings.Cut(line, "--")
			if strings.TrimSpace(code) != "" {
				kept = append(kept, code)
			}
		}
		if len(kept) > 0 {
			out = append(out, strings.Join(kept, "\n"))
		}
	}
	return out
}
