package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// micros and fromMicros are how times are kept.
func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(m int64) time.Time { return time.UnixMicro(m).UTC() }

// optMicros keeps nil as NULL.
func optMicros(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: micros(*t), Valid: true}
}

func fromOptMicros(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := fromMicros(n.Int64)
	return &t
}

// encode is for values of our own types, which always have a JSON form.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: %T does not encode: %v", v, err))
	}
	return string(b)
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
