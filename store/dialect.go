package store

import (
	"database/sql"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A dialect is everything in which the two engines differ. The SQL text is the
// same for both.
type dialect struct {
	name      string
	snapshot  *sql.TxOptions // of a read-only transaction that sees one moment
	forUpdate string         // locks the rows of a SELECT until the transaction ends
	forShare  string         // lets others lock them so as well, and nobody for update or removal
	skip      string         // the same as forUpdate, passing over rows that somebody else has locked
	alone     string         // keeps other transactions that run it waiting until this one ends
	numbered  bool           // placeholders are $1, $2, … instead of ?
	duplicate func(error) bool
	full      func(error) bool // the disk or a quota is full
	cut       func(error) bool // the connection was lost while it lay idle
}

// SQLite has one writer at a time, so rows need no locks of their own.
var sqliteDialect = &dialect{
	name: "sqlite", // a reading transaction is a snapshot by itself
	duplicate: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
	},
	full: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && slices.Contains(sqliteFull, e.Code())
	},
	cut: func(error) bool { return false },
}

// sqliteFull are the forms a full disk takes: as such, beyond a quota, and when
// the index of the log cannot grow.
var sqliteFull = []int{sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}

var postgresDialect = &dialect{
	name:      "postgres",
	snapshot:  &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
	forUpdate: " FOR UPDATE",
	forShare:  " FOR KEY SHARE",
	skip:      " FOR UPDATE SKIP LOCKED",
	alone:     "SELECT pg_advisory_xact_lock(7161215)",
	numbered:  true,
	duplicate: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && e.Code == "23505"
	},
	full: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && e.Code == "53100"
	},
	cut: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && e.Code == "57P01" || pgconn.SafeToRetry(err)
	},
}

// rebind turns the ? placeholders of a query into the engine's own. No query of
// this package has a question mark in a literal.
func (d *dialect) rebind(query string) string {
	if !d.numbered {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	n := 0
	for {
		i := strings.IndexByte(query, '?')
		if i < 0 {
			b.WriteString(query)
			return b.String()
		}
		n++
		b.WriteString(query[:i])
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		query = query[i+1:]
	}
}
