package httpapi

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
)

// ratedKeysMax bounds the keys whose use is remembered.
const ratedKeysMax = 10_000

// rates bounds the requests of each API key with two token buckets.
type rates struct {
	writes, reads int // a minute; 0 is no bound

	mu    sync.Mutex
	byKey map[api.KeyID]*buckets
}

type buckets struct{ writes, reads *rate.Limiter }

func newRates(writes, reads int) *rates {
	return &rates{writes: writes, reads: reads, byKey: map[api.KeyID]*buckets{}}
}

// take counts one request, or refuses it with the time to wait.
func (r *rates) take(who control.Principal, method string, now time.Time) error {
	if who.Kind != api.KeyAPI && who.Kind != api.KeyTunnels || r.writes == 0 && r.reads == 0 {
		return nil
	}
	b := r.of(who.KeyID)
	limiter, perMinute, what := b.writes, r.writes, "writing"
	if method == http.MethodGet {
		limiter, perMinute, what = b.reads, r.reads, "reading"
	}
	booking := limiter.ReserveN(now, 1)
	wait := booking.DelayFrom(now)
	if wait == 0 {
		return nil
	}
	booking.CancelAt(now)
	return &api.Error{
		Status: http.StatusTooManyRequests, Type: api.TypeRateLimit, RetryAfter: wait,
		Message: "this key has made more than its share of " + what + " requests; wait, or ask the operator of this server for more than " +
			strconv.Itoa(perMinute) + " a minute",
	}
}

func (r *rates) of(id api.KeyID) *buckets {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.byKey[id]
	if b == nil {
		if len(r.byKey) >= ratedKeysMax {
			// Forgetting everybody lets each key burst once more, which is harmless.
			clear(r.byKey)
		}
		b = &buckets{bucket(r.writes), bucket(r.reads)}
		r.byKey[id] = b
	}
	return b
}

// bucket allows perMinute requests a minute, ten seconds' worth of them at once.
func bucket(perMinute int) *rate.Limiter {
	if perMinute == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(float64(perMinute)/60), max(1, perMinute/6))
}
