package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
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
	return utf8Text(b)
}

// utf8Text replaces the bytes that are not UTF-8, as reading the JSON would. They
// come in values that are kept as the JSON they arrived in, and PostgreSQL refuses
// them.
func utf8Text(json []byte) string { return strings.ToValidUTF8(string(json), "\ufffd") }

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
