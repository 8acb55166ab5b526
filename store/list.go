package store

import (
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// A where collects the conditions of a list query.
type where struct {
	conds []string
	args  []any
}

func (w *where) and(cond string, args ...any) {
	w.conds = append(w.conds, cond)
	w.args = append(w.args, args...)
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

// between bounds a time column.
func (w *where) between(column string, r api.TimeRange) {
	if r.GT != nil {
		w.and(column+" > ?", micros(*r.GT))
	}
	if r.GTE != nil {
		w.and(column+" >= ?", micros(*r.GTE))
	}
	if r.LT != nil {
		w.and(column+" < ?", micros(*r.LT))
	}
	if r.LTE != nil {
		w.and(column+" <= ?", micros(*r.LTE))
	}
}

// A Window is the part of a list to read: at most Limit rows after After (nil:
// from the start), in Order.
type Window struct {
	After *api.Cursor
	Limit int
	Order api.Order
}

// page adds the window over (key, id) to a query.
func (w *where) page(key, id string, win Window) (tail string) {
	cmp, dir := ">", " ASC"
	if win.Order == api.Descending {
		cmp, dir = "<", " DESC"
	}
	if c := win.After; c != nil {
		w.and("("+key+" "+cmp+" ? OR "+key+" = ? AND "+id+" "+cmp+" ?)", c.Key, c.Key, c.ID)
	}
	w.args = append(w.args, win.Limit)
	return " ORDER BY " + key + dir + ", " + id + dir + " LIMIT ?"
}
