package api

import (
	"encoding/base64"
	"encoding/json"
)

// A Page is one page of a list. NextPage is null on the last one.
type Page[T any] struct {
	Data     []T     `json:"data"`
	NextPage *string `json:"next_page"`
}

// A SessionPage is a page of the session list, the one list that can also be
// walked backwards.
type SessionPage struct {
	Data     []*Session `json:"data"`
	NextPage *string    `json:"next_page"`
	PrevPage *string    `json:"prev_page"`
}

// An Order is a direction of sorting.
type Order string

const (
	Ascending  Order = "asc"
	Descending Order = "desc"
)

// A PageRequest asks for one page of a list.
type PageRequest struct {
	Limit  int    // 0 means the list's default
	Cursor string // the opaque cursor of an earlier page; "" is the first page
}

// A Cursor is a place in a list: the sort key of the last row seen, its id, and
// the order that made it. Clients see it only in encoded form.
type Cursor struct {
	Order Order  `json:"o"`
	Key   int64  `json:"k"`
	ID    string `json:"i,omitempty"`
	Back  bool   `json:"b,omitempty"` // walk backwards from here
}

const cursorPrefix = "page_"

// Encode returns the opaque form of c.
func (c Cursor) Encode() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic("api: a cursor always encodes: " + err.Error())
	}
	return cursorPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// DecodeCursor reads the opaque form back. A cursor of another order than want
// is refused.
func DecodeCursor(s string, want Order) (Cursor, error) {
	bad := Invalid("page: not a cursor of this list; start again without `page`")
	if len(s) > 1024 || len(s) <= len(cursorPrefix) || s[:len(cursorPrefix)] != cursorPrefix {
		return Cursor{}, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(s[len(cursorPrefix):])
	if err != nil {
		return Cursor{}, bad
	}
	var c Cursor
	if err := DecodeStrict(b, &c); err != nil || c.Order != Ascending && c.Order != Descending {
		return Cursor{}, bad
	}
	if c.ID != "" && CheckID("page", c.ID) != nil {
		return Cursor{}, bad
	}
	if c.Order != want {
		return Cursor{}, Invalid("page: this cursor was made with order=%s; start again without `page` to change the order", c.Order)
	}
	return c, nil
}
