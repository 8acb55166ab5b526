package store

import (
	"context"
	"time"
)

// ClockSkew is how far this process's clock is ahead of the database server's, as well
// as a question or two over the network can tell. SQLite has no clock of its own.
func (db *DB) ClockSkew(ctx context.Context) (time.Duration, error) {
	if db.others == nil {
		return 0, nil
	}
	var best, skew time.Duration
	for range 3 { // the quickest answer says it best
		var micros int64
		before := db.opt.Clock()
		err := db.read.QueryRowContext(ctx, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").Scan(&micros)
		if err != nil {
			return 0, err
		}
		took := db.opt.Clock().Sub(before)
		if best == 0 || took < best {
			best, skew = took, before.Add(took/2).Sub(time.UnixMicro(micros))
		}
	}
	return skew, nil
}
