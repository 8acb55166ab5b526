package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	anthropic "github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/packages/param"

	"github.com/bailey-platform/bailey/api"
)

// plane is the HTTP API as the worker uses it. Every method is one attempt: who
// retries, and for how long, is decided where it is known what is at stake.
type plane struct {
	client   anthropic.Client
	env      string
	workerID string
	keys     *keyring
}

const (
	betaHeader = "managed-agents-2026-04-01" // for calls the SDK does not make itself

	pollTimeout   = 30 * time.Second // of a poll, which the plane holds for pollBlock
	callTimeout   = 15 * time.Second // of any other short call
	listTimeout   = 2 * time.Minute  // of one page of history
	streamTimeout = 30 * time.Second // until a stream's headers

	slowLine = 128 << 10 // bytes a second that an upload must reach

	pageLimit = 1000
	bodyMax   = 256 << 20 // bytes of any answer that is not a stream
)

func newPlane(c Config, keys *keyring) *plane {
	return &plane{
		env:      c.EnvironmentID,
		workerID: c.WorkerID,
		keys:     keys,
		client: anthropic.NewClient(
			// The process's environment may hold an API key or headers that are
			// meant for other programs.
			option.WithoutEnvironmentDefaults(),
			option.WithBaseURL(c.BaseURL),
			option.WithHTTPClient(c.HTTPClient),
			option.WithMaxRetries(0),
			option.WithHeader("User-Agent", "bailey-worker"),
			option.WithMiddleware(boundBody),
		),
	}
}

// boundBody limits the answers that are read whole.
func boundBody(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	res, err := next(req)
	if err == nil && res.Body != nil && !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		res.Body = http.MaxBytesReader(nil, res.Body, bodyMax)
	}
	return res, err
}

// refusal is an answer with an error status.
type refusal struct {
	op      string
	status  int
	message string        // the plane's words, shortened
	after   time.Duration // what Retry-After asks for, or 0
}

func (e *refusal) Error() string {
	if e.message == "" {
		return fmt.Sprintf("%s: the plane answered %d %s", e.op, e.status, http.StatusText(e.status))
	}
	return fmt.Sprintf("%s: the plane answered %d: %s", e.op, e.status, e.message)
}

// statusOf returns the HTTP status an error came with, or 0 if there was none.
func statusOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

// unauthorized reports whether err is about the credential, which may be in the
// middle of being rotated.
func unauthorized(err error) bool {
	s := statusOf(err)
	return s == http.StatusUnauthorized || s == http.StatusForbidden
}

// gone reports whether err says that what was asked for is no more, or not for us.
func gone(err error) bool {
	s := statusOf(err)
	return s == http.StatusNotFound || s == http.StatusGone
}

// final reports whether the same request would be refused again however often
// it is sent. Trouble with the credential is not counted as such.
func final(err error) bool {
	switch s := statusOf(err); s {
	case http.StatusUnauthorized, http.StatusForbidden,
		http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	default:
		return s >= 400 && s < 500
	}
}

// retryAfter returns how long the plane asked to be left alone, at most five minutes.
func retryAfter(err error) time.Duration {
	var r *refusal
	if errors.As(err, &r) {
		return min(r.after, 5*time.Minute)
	}
	return 0
}

// do makes one call. If the credential is refused and there is another, the call
// is made once more with that.
func (p *plane) do(op string, cred credential, timeout time.Duration, call func(opts ...option.RequestOption) error) error {
	for again := false; ; again = true {
		bearer, err := cred.bearer()
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		var raw *http.Response
		opts := []option.RequestOption{
			option.WithHeaderDel("X-Api-Key"),
			option.WithAuthToken(bearer),
			option.WithResponseInto(&raw),
		}
		if timeout > 0 {
			opts = append(opts, option.WithRequestTimeout(timeout))
		}
		err = call(opts...)
		if err == nil {
			return nil
		}
		if raw == nil || raw.StatusCode < 400 {
			return fmt.Errorf("%s: %w", op, err)
		}
		r := &refusal{op: op, status: raw.StatusCode, after: parseRetryAfter(raw.Header)}
		var apiErr *anthropic.Error
		if errors.As(err, &apiErr) {
			// A plane, or a proxy before it, may quote what it was sent.
			r.message = fmt.Sprintf("%.300s", strings.ReplaceAll(apiErr.Message, bearer, "***"))
		}
		if again || !unauthorized(r) || !cred.refused(bearer) {
			return r
		}
	}
}

func parseRetryAfter(h http.Header) time.Duration {
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms > 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	if s, err := strconv.ParseFloat(h.Get("Retry-After"), 64); err == nil && s > 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	return 0
}

// offer is a work item as a poll returns it.
type offer struct {
	id      string
	kind    string // of the work: "session"
	session string
	token   string // the item's own credential; may be empty
}

// poll asks for work and waits for it up to block. No work is nil.
func (p *plane) poll(ctx context.Context, block time.Duration) (*offer, error) {
	var work *anthropic.BetaSelfHostedWork
	err := p.do("poll for work", p.keys, pollTimeout, func(opts ...option.RequestOption) (err error) {
		var raw *http.Response
		opts = append(opts, option.WithResponseBodyInto(&raw))
		_, err = p.client.Beta.Environments.Work.Poll(ctx, p.env, anthropic.BetaEnvironmentWorkPollParams{
			BlockMs:           param.NewOpt(block.Milliseconds()),
			AnthropicWorkerID: param.NewOpt(p.workerID),
		}, opts...)
		if err != nil {
			return err
		}
		defer finish(raw)
		if raw.StatusCode == http.StatusNoContent {
			return nil
		}
		// The body of an empty poll is `null`, which leaves work nil.
		return json.NewDecoder(raw.Body).Decode(&work)
	})
	if err != nil || work == nil || work.ID == "" {
		return nil, err
	}
	return &offer{
		id: work.ID, kind: string(work.Data.Type), session: work.Data.ID,
		token: sessionsToken(work.Secret),
	}, nil
}

// sessionsToken takes the token out of an item's secret, or returns "" for a
// secret of another shape.
func sessionsToken(secret string) string {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(secret, "="))
	if err != nil {
		return ""
	}
	var s api.WorkSecret
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s.SessionsToken
}

func (p *plane) ack(ctx context.Context, work string) error {
	return p.do("acknowledge work", p.keys, callTimeout, func(opts ...option.RequestOption) error {
		return p.bare(opts, func(opts ...option.RequestOption) error {
			_, err := p.client.Beta.Environments.Work.Ack(ctx, work, anthropic.BetaEnvironmentWorkAckParams{EnvironmentID: p.env}, opts...)
			return err
		})
	})
}

// bare makes a call whose answer matters only by its status: production answers
// some of them with 204 where the SDK expects JSON.
func (p *plane) bare(opts []option.RequestOption, call func(opts ...option.RequestOption) error) error {
	var raw *http.Response
	err := call(append(opts, option.WithResponseBodyInto(&raw))...)
	if raw != nil {
		finish(raw)
	}
	return err
}

// finish closes an answer's body, read to its end so that the connection can be
// used again.
func finish(res *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	_ = res.Body.Close()
}

// beat is the answer to a heartbeat.
type beat struct {
	last     string
	extended bool
	state    api.WorkState
	ttl      time.Duration // 0 if the plane did not say
}

// heartbeat extends a lease whose last answer was last. A ttl above 0 asks for a
// lease of that length.
func (p *plane) heartbeat(ctx context.Context, cred credential, work, last string, ttl, timeout time.Duration) (beat, error) {
	var b beat
	err := p.do("heartbeat", cred, timeout, func(opts ...option.RequestOption) error {
		params := anthropic.BetaEnvironmentWorkHeartbeatParams{
			EnvironmentID:         p.env,
			ExpectedLastHeartbeat: param.NewOpt(last),
		}
		if ttl > 0 {
			params.DesiredTTLSeconds = param.NewOpt(int64(ttl.Seconds()))
		}
		res, err := p.client.Beta.Environments.Work.Heartbeat(ctx, work, params, opts...)
		if err != nil {
			return err
		}
		if res == nil {
			return errors.New("the answer is empty")
		}
		b = beat{
			last: res.LastHeartbeat, extended: res.LeaseExtended, state: api.WorkState(res.State),
			ttl: time.Duration(max(0, min(res.TTLSeconds, 24*60*60))) * time.Second,
		}
		return nil
	})
	return b, err
}

// stop ends an item at once, so that the session's next one may be queued.
func (p *plane) stop(ctx context.Context, cred credential, work string) error {
	return p.do("stop work", cred, callTimeout, func(opts ...option.RequestOption) error {
		return p.bare(opts, func(opts ...option.RequestOption) error {
			_, err := p.client.Beta.Environments.Work.Stop(ctx, work, anthropic.BetaEnvironmentWorkStopParams{
				EnvironmentID:                 p.env,
				BetaSelfHostedWorkStopRequest: anthropic.BetaSelfHostedWorkStopRequestParam{Force: param.NewOpt(true)},
			}, opts...)
			return err
		})
	})
}

// terminated reports whether a session takes no more results.
func (p *plane) terminated(ctx context.Context, cred credential, session string) (bool, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := p.do("read session", cred, callTimeout, func(opts ...option.RequestOption) error {
		return p.client.Get(ctx, sessionPath(session), nil, &s, p.beta(opts)...)
	})
	return s.Status == string(api.StatusTerminated), err
}

// history returns one page of a session's events, the oldest first, and the
// cursor of the next, which is empty at the end.
func (p *plane) history(ctx context.Context, cred credential, session, cursor string) (events []json.RawMessage, next string, err error) {
	var page struct {
		Data     []json.RawMessage `json:"data"`
		NextPage string            `json:"next_page"`
	}
	err = p.do("read events", cred, listTimeout, func(opts ...option.RequestOption) error {
		opts = append(p.beta(opts), option.WithQuery("limit", strconv.Itoa(pageLimit)), option.WithQuery("order", "asc"))
		if cursor != "" {
			opts = append(opts, option.WithQuery("page", cursor))
		}
		return p.client.Get(ctx, sessionPath(session)+"/events", nil, &page, opts...)
	})
	return page.Data, page.NextPage, err
}

// stream opens a session's live events. It lasts until ctx does, or until the
// plane ends it.
func (p *plane) stream(ctx context.Context, cred credential, session string) (*stream, error) {
	// A timeout of the request would end the stream as well, so only the wait for
	// its headers is bounded.
	ctx, cancel := context.WithCancel(ctx)
	waited := time.AfterFunc(streamTimeout, cancel)
	var res *http.Response
	err := p.do("open stream", cred, 0, func(opts ...option.RequestOption) error {
		return p.client.Get(ctx, sessionPath(session)+"/events/stream", nil, &res, p.beta(opts)...)
	})
	if !waited.Stop() && err == nil {
		_ = res.Body.Close()
		err = errors.New("open stream: no answer in time")
	}
	if err == nil {
		if kind := res.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
			_ = res.Body.Close()
			err = fmt.Errorf("open stream: the plane answered with content type %.60q", kind)
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return newStream(res.Body, cancel), nil
}

// output returns the whole text of a result of which its event shows a part. Only planes of
// ours have such events.
func (p *plane) output(ctx context.Context, cred credential, session, event string) (string, error) {
	var text []byte
	err := p.do("read output", cred, listTimeout, func(opts ...option.RequestOption) error {
		var raw *http.Response
		opts = append(p.beta(opts), option.WithResponseBodyInto(&raw))
		err := p.client.Get(ctx, sessionPath(session)+"/events/"+url.PathEscape(event)+"/output", nil, nil, opts...)
		if err != nil {
			return err
		}
		defer raw.Body.Close()
		text, err = io.ReadAll(io.LimitReader(raw.Body, outputMax))
		return err
	})
	return string(text), err
}

// outputMax bounds such a text, in bytes.
const outputMax = 8 << 20

// send posts one event, byte for byte.
func (p *plane) send(ctx context.Context, cred credential, session string, event json.RawMessage) error {
	body := make([]byte, 0, len(event)+len(`{"events":[]}`))
	body = append(body, `{"events":[`...)
	body = append(body, event...)
	body = append(body, `]}`...)
	// A large result may go out over a slow line.
	timeout := callTimeout + time.Duration(len(body)/slowLine)*time.Second
	return p.do("send event", cred, timeout, func(opts ...option.RequestOption) error {
		return p.bare(opts, func(opts ...option.RequestOption) error {
			return p.client.Post(ctx, sessionPath(session)+"/events", body, nil, p.beta(opts)...)
		})
	})
}

// stats asks for the state of the queue: the cheapest call that tells whether
// the key is good. It returns the plane's clock, or a zero time.
func (p *plane) stats(ctx context.Context) (now time.Time, err error) {
	err = p.do("read queue", p.keys, callTimeout, func(opts ...option.RequestOption) error {
		var raw *http.Response
		opts = append(opts, option.WithResponseBodyInto(&raw))
		_, err := p.client.Beta.Environments.Work.Stats(ctx, p.env, anthropic.BetaEnvironmentWorkStatsParams{}, opts...)
		if err != nil {
			return err
		}
		finish(raw)
		now, _ = http.ParseTime(raw.Header.Get("Date"))
		return nil
	})
	return now, err
}

func (p *plane) beta(opts []option.RequestOption) []option.RequestOption {
	return append(opts, option.WithHeader("anthropic-beta", betaHeader))
}

func sessionPath(session string) string { return "v1/sessions/" + url.PathEscape(session) }

// backoff counts out the waits between attempts: doubling from min to max, each
// drawn from the upper half so that a fleet does not come back in step.
type backoff struct {
	min, max time.Duration
	n        int
}

func (b *backoff) next() time.Duration {
	d := b.max
	if b.n < 16 {
		d = min(b.max, b.min<<b.n)
		b.n++
	}
	return d/2 + rand.N(d/2+1)
}

func (b *backoff) reset() { b.n = 0 }

// sleep waits for d or ctx, and reports whether ctx is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
