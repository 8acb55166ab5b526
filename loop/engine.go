package loop

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model"
)

// Config of [New]. Control and Model are required; zero numbers and durations
// mean the defaults named.
type Config struct {
	Control *control.Control
	Model   *model.Client
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: none

	// MCP reaches MCP servers. Nil: sessions are told that theirs cannot be reached.
	MCP *http.Client

	// Owner names this process in the turns it holds. Default: random.
	Owner string

	// TurnsMax is how many sessions may be at work at a time in this process;
	// sessions that wait for workers or people do not count, those with calls of MCP
	// tools under way do. Default 256.
	TurnsMax int

	// TurnTTL is how long a turn lasts without renewal: that of the control.
	// Default 15 s.
	TurnTTL time.Duration

	// CompactTokens is the size of a conversation from which on it is summarized
	// before the next model request. Default 150,000; less for a model with a
	// small context.
	CompactTokens int64

	// Grace is how long model requests may go on once the engine is told to stop.
	// Those that take longer are cut off, and made again by whoever runs next.
	// Default 30 s.
	Grace time.Duration
}

// An Engine runs the turns of due sessions. Any number of processes may run one
// over the same database: a session's turn is held by one of them at a time.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	pool    *pool
	stop    atomic.Bool // no model request is begun any more
}

// New returns an engine that has yet to [Engine.Run].
func New(cfg Config) *Engine {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Owner == "" {
		cfg.Owner = "loop-" + rand.Text()
	}
	if cfg.TurnsMax == 0 {
		cfg.TurnsMax = 256
	}
	if cfg.TurnTTL == 0 {
		cfg.TurnTTL = 15 * time.Second
	}
	if cfg.CompactTokens == 0 {
		cfg.CompactTokens = compactTokensDefault
	}
	if cfg.Grace == 0 {
		cfg.Grace = 30 * time.Second
	}
	e := &Engine{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics)}
	e.pool = newPool(e)
	return e
}

// retryDelay is the pause after the database or a turn failed, so that neither is
// tried in a tight loop.
const retryDelay = time.Second

// Run works until ctx ends, then lets the model requests under way finish for the
// grace period, and returns once all its goroutines are gone. It returns nil.
func (e *Engine) Run(ctx context.Context) error {
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()

	// Owned by this goroutine.
	running := map[api.SessionID]struct{}{}
	ended := make(chan api.SessionID)

	for ctx.Err() == nil {
		var wait time.Duration
		if room := e.cfg.TurnsMax - len(running); room > 0 {
			ids, next, err := e.cfg.Control.DueTurns(ctx, room+len(running))
			if err != nil && ctx.Err() == nil {
				e.log.Error("looking for due sessions failed; trying again", "error", err)
				next = time.Now().Add(retryDelay)
			}
			for _, id := range ids {
				if _, ok := running[id]; ok || len(running) == e.cfg.TurnsMax {
					continue
				}
				running[id] = struct{}{}
				go func() {
					defer func() { ended <- id }()
					e.run(work, id)
				}()
			}
			wait = time.Until(next)
		} else {
			wait = time.Hour // until a turn ends
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
		case <-e.cfg.Control.Due():
		case <-timer.C:
		case id := <-ended:
			delete(running, id)
		}
		timer.Stop()
	}

	e.stop.Store(true)
	grace := time.AfterFunc(e.cfg.Grace, cut)
	defer grace.Stop()
	for len(running) > 0 {
		delete(running, <-ended)
	}
	e.pool.close()
	return nil
}
