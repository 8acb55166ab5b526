package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// ListOptions narrow a list. Zero fields are left to the server.
type ListOptions struct {
	// PageSize is how many objects one request asks for, not how many the list
	// yields: stop iterating when there are enough.
	PageSize int

	IncludeArchived bool // where objects can be archived
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	if o.IncludeArchived {
		q.Set("include_archived", "true")
	}
	return q
}

// list walks the pages of a list. It ends after the first error.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			var page api.Page[T]
			if err := c.do(ctx, http.MethodGet, path, query, nil, &page); err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, v := range page.Data {
				if !yield(v, nil) {
					return
				}
			}
			if page.NextPage == nil || *page.NextPage == "" {
				return
			}
			query.Set("page", *page.NextPage)
		}
	}
}

func setTimes(q url.Values, name string, r api.TimeRange) {
	for op, t := range map[string]*time.Time{"gt": r.GT, "gte": r.GTE, "lt": r.LT, "lte": r.LTE} {
		if t != nil {
			q.Set(name+"["+op+"]", t.Format(time.RFC3339Nano))
		}
	}
}
