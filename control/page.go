package control

import (
	"context"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// window turns a page request into the window of a list query. It asks for one
// row more than the page holds, to know whether there is a next one.
func window(req api.PageRequest, order api.Order, least, most int) (store.Window, error) {
	win := store.Window{Limit: req.Limit, Order: order}
	if req.Limit == 0 {
		win.Limit = least
	}
	if win.Limit < 1 || win.Limit > most {
		return win, api.Invalid("limit: must be 1 to %d", most)
	}
	win.Limit++
	if req.Cursor != "" {
		c, err := api.DecodeCursor(req.Cursor, order)
		if err != nil {
			return win, err
		}
		win.After = &c
	}
	return win, nil
}

// paged cuts the extra row off and makes the cursor of the next page. key gives
// a row's place in the list.
func paged[R, T any](rows []R, win store.Window, key func(R) (int64, string), public func(R) T) api.Page[T] {
	more := len(rows) == win.Limit
	if more {
		rows = rows[:win.Limit-1]
	}
	return pagedUpTo(rows, more, win, key, public)
}

// pagedUpTo is paged for rows that are known to be the whole page; more says that
// others follow.
func pagedUpTo[R, T any](rows []R, more bool, win store.Window, key func(R) (int64, string), public func(R) T) api.Page[T] {
	page := api.Page[T]{Data: []T{}}
	if more {
		k, id := key(rows[len(rows)-1])
		next := api.Cursor{Order: win.Order, Key: k, ID: id}.Encode()
		page.NextPage = &next
	}
	for _, r := range rows {
		page.Data = append(page.Data, public(r))
	}
	return page
}

// listNewest is a page of a list that only API keys see, the newest first.
func listNewest[R, T any](ctx context.Context, c *Control, p Principal, req api.PageRequest, read func(*store.Tx, store.Window) ([]R, error), key func(R) (int64, string), public func(R) T) (page api.Page[T], err error) {
	if err := p.admin(); err != nil {
		return page, err
	}
	return listRows(ctx, c, req, api.ListPageMax, read, key, public)
}

// listRows is a page of a list of at most that many, the newest first, for whoever may
// see it.
func listRows[R, T any](ctx context.Context, c *Control, req api.PageRequest, most int, read func(*store.Tx, store.Window) ([]R, error), key func(R) (int64, string), public func(R) T) (page api.Page[T], err error) {
	win, err := window(req, api.Descending, api.ListPageDefault, most)
	if err != nil {
		return page, err
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		rows, err := read(tx, win)
		page = paged(rows, win, key, public)
		return err
	})
	return page, err
}

func same[T any](v T) T { return v }
