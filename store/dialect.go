package store

import (
	"errors"
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
	forUpdate string // locks the rows of a SELECT until the transaction ends
	skip      string // the same, passing over rows that somebody else has locked
	numbered  bool   // placeholders are $1, $2, … instead of ?
	duplicate func(error) bool
	full      func(error) bool // the disk or a quota is full
}

// SQLite has one writer at a time, so rows need no locks of their own.
var sqliteDialect = &dialect{
	name: "sqlite",
	duplicate: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
	},
	full: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && (e.Code()&0xff == sqlite3.SQLITE_FULL || e.Code()&0xff == sqlite3.SQLITE_IOERR)
	},
}

var postgresDialect = &dialect{
	name:      "postgres",
	forUpdate: " FOR UPDATE",
	skip:      " FOR UPDATE SKIP LOCKED",
	numbered:  true,
	duplicate: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && e.Code == "23505"
	},
	full: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && (e.Code == "53100" || e.Code == "53200")
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
