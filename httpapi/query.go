package httpapi

import (
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// listMax bounds the values of one list parameter, such as event_deltas[].
const listMax = 100

// A query reads the parameters of a request. The first malformed one is kept in
// err and everything read after it is a zero value, so that a handler asks for
// what it needs and looks at err once. Parameters nobody asks for are ignored.
type query struct {
	values url.Values
	err    error
}

func parseQuery(raw string) *query {
	values, err := url.ParseQuery(raw)
	if err != nil {
		// The parser's own message quotes the query, which may hold anything.
		return &query{err: api.Invalid("the query string is malformed")}
	}
	return &query{values: values}
}

func (q *query) fail(format string, args ...any) {
	if q.err == nil {
		q.err = api.Invalid(format, args...)
	}
}

// text returns the one value of a parameter, or "".
func (q *query) text(name string) string {
	v := q.values[name]
	if q.err != nil || len(v) == 0 {
		return ""
	}
	if len(v) > 1 {
		q.fail("%s: given %d times; give it once", name, len(v))
		return ""
	}
	return v[0]
}

// list returns the values of a repeated parameter, written name[]=a&name[]=b or
// name=a&name=b.
func (q *query) list(name string) []string {
	if q.err != nil {
		return nil
	}
	v := slices.Concat(q.values[name+"[]"], q.values[name])
	if len(v) > listMax {
		q.fail("%s: at most %d values, got %d", name, listMax, len(v))
		return nil
	}
	return v
}

// integer returns a whole number from least to most, or 0 when absent.
func (q *query) integer(name string, least, most int64) int64 {
	s := q.text(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		q.fail("%s: must be a whole number from %d to %d", name, least, most)
		return 0
	}
	return n
}

// milliseconds returns a duration, or 0 when absent.
func (q *query) milliseconds(name string, least, most time.Duration) time.Duration {
	return time.Duration(q.integer(name, least.Milliseconds(), most.Milliseconds())) * time.Millisecond
}

func (q *query) boolean(name string) bool {
	switch q.text(name) {
	case "", "false":
		return false
	case "true":
		return true
	}
	q.fail("%s: must be true or false", name)
	return false
}

func (q *query) time(name string) *time.Time {
	s := q.text(name)
	if s == "" {
		return nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		q.fail("%s: must be an RFC 3339 time, such as 2026-01-02T15:04:05Z", name)
		return nil
	}
	return &t
}

// timeRange reads name[gt], name[gte], name[lt] and name[lte].
func (q *query) timeRange(name string) api.TimeRange {
	return api.TimeRange{
		GT: q.time(name + "[gt]"), GTE: q.time(name + "[gte]"),
		LT: q.time(name + "[lt]"), LTE: q.time(name + "[lte]"),
	}
}

// id reads the id of another object, or "".
func (q *query) id(name string) string {
	s := q.text(name)
	if s == "" {
		return ""
	}
	if err := api.CheckID(name, s); err != nil {
		if q.err == nil {
			q.err = err
		}
		return ""
	}
	return s
}

// order reads a direction, or "" for the list's own.
func (q *query) order() api.Order {
	switch o := api.Order(q.text("order")); o {
	case "", api.Ascending, api.Descending:
		return o
	}
	q.fail("order: must be asc or desc")
	return ""
}

// page reads limit and page. How large a page may be is the list's own rule.
func (q *query) page() api.PageRequest {
	return api.PageRequest{Limit: int(q.integer("limit", 1, 1_000_000)), Cursor: q.text("page")}
}

func (q *query) statuses() []api.SessionStatus {
	var out []api.SessionStatus
	for _, v := range q.list("statuses") {
		s := api.SessionStatus(v)
		if !slices.Contains(api.Statuses, s) {
			q.fail("statuses: must be rescheduling, running, idle or terminated")
			return nil
		}
		out = append(out, s)
	}
	return out
}
