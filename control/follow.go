package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// FollowOptions of [Control.Follow].
type FollowOptions struct {
	// Previews are the types of events whose making is to be shown: agent.message,
	// agent.thinking.
	Previews []api.EventType

	// LastEventID resumes after a frame's ID. Empty starts at now. An extension:
	// the original has no replay.
	LastEventID string
}

// A Frame is one message of a stream.
type Frame struct {
	Name string // of the event; never empty
	ID   string // to resume after; empty for previews
	Data []byte // JSON on one line
}

// A Follower is a live view of one session, owned by one goroutine.
type Follower struct {
	c       *Control
	id      api.SessionID
	keys    []api.KeyID // whose view it is
	want    []api.EventType
	changed *signal // the log may have grown
	shown   *signal // pending may have
	revoked *signal // one of the keys may be good no more
	cancel  []func()

	// Owned by the goroutine that calls Next.
	cursor    int64         // everything up to here was delivered
	more      bool          // there may be events after cursor, or the session may be gone
	checked   time.Time     // when it was last seen that the key is still good
	delivered []api.EventID // the newest previewable events delivered
	ended     bool

	mu      sync.Mutex
	pending []preview     // guarded by mu
	open    []openPreview // guarded by mu: the newest ones begun
}

// A preview is a frame that is never stored.
type preview struct {
	typ   api.EventType // of the previewed event
	id    api.EventID
	span  api.EventID // the model request it is part of
	start bool
	frame any // PreviewStart or PreviewDelta
}

// An openPreview is the preview of an event that may get more text.
type openPreview struct {
	id, span api.EventID
	shed     bool // the follower was too slow: it gets no more of this one
}

const (
	feedBatch       = 256              // events read at a time
	previewBacklog  = 1024             // frames a slow follower may be behind before previews are shed
	previewsTracked = 64               // previewed events remembered per follower
	followPoll      = 60 * time.Second // how often to look without being notified
)

// Follow opens a live view of a session: all that is committed from now on. It is
// registered before it returns, so that a list made afterwards misses nothing.
func (c *Control) Follow(ctx context.Context, p Principal, id api.SessionID, thread api.ThreadID, opt FollowOptions) (*Follower, error) {
	f := &Follower{
		c: c, id: id, keys: p.keys(), want: opt.Previews, changed: newSignal(), shown: newSignal(), revoked: newSignal(),
		more: true, checked: time.Now(),
	}
	for _, key := range f.keys {
		f.cancel = append(f.cancel, c.hub.subscribe(topicKey(key), f.revoked))
	}
	f.cancel = append(f.cancel, c.hub.subscribe(topicSession(id), f.changed))
	if len(opt.Previews) > 0 {
		f.cancel = append(f.cancel, c.hub.follow(id, f))
	}
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, id)
		if err != nil {
			return err
		}
		if thread != "" && thread != s.ThreadID {
			return api.NotFound("thread %s was not found", thread)
		}
		f.cursor, err = resumeAt(opt.LastEventID, s.LastSeq)
		return err
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func resumeAt(lastEventID string, lastSeq int64) (int64, error) {
	if lastEventID == "" {
		return lastSeq, nil
	}
	n, err := strconv.ParseInt(lastEventID, 10, 64)
	if err != nil || n < 0 || n > lastSeq {
		return 0, api.Invalid("Last-Event-ID: not the id of a frame of this stream; open it without the header and list the events")
	}
	return n, nil
}

// Close ends the view. Next must not be running.
func (f *Follower) Close() {
	for _, cancel := range f.cancel {
		cancel()
	}
	f.cancel = nil
}

// Next waits for the next frames, at least one, in order. It returns io.EOF after
// the session was deleted, and an *api.Error when the server is stopping or the
// credential is no longer good.
func (f *Follower) Next(ctx context.Context) ([]Frame, error) {
	if f.ended {
		return nil, io.EOF
	}
	// Callers give up now and then to send a heartbeat, so the time to look again is
	// counted across calls.
	poll := time.NewTimer(time.Until(f.checked.Add(followPoll)))
	defer poll.Stop()
	for {
		if f.c.hub.isClosed() {
			return nil, api.Overloaded(time.Second, "the server is stopping; connect again")
		}
		select {
		case <-f.revoked.C:
			f.doubt()
		case <-f.changed.C:
			f.more = true
		default: // previews that keep coming must not hold the events back
		}
		// Previews first: those of an event come before the event itself.
		previews := f.takePreviews()
		var stored []Frame
		if f.more {
			var err error
			if stored, err = f.feed(ctx); errors.Is(err, store.ErrNotFound) {
				f.ended = true
				stored = []Frame{f.deleted()}
			} else if err != nil {
				f.putBack(previews)
				return nil, err
			}
		}
		if frames := append(previewFrames(previews), stored...); len(frames) > 0 {
			return frames, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-f.shown.C:
		case <-f.changed.C:
			f.more = true
		case <-f.revoked.C:
			f.doubt()
		case <-poll.C:
			poll.Reset(followPoll)
			f.more = true
		}
	}
}

// doubt makes the next look at the log one at the keys as well.
func (f *Follower) doubt() { f.checked, f.more = time.Time{}, true }

// Cursor is the ID of the newest frame delivered, or of where the view began: what
// to resume after.
func (f *Follower) Cursor() string { return strconv.FormatInt(f.cursor, 10) }

func (f *Follower) feed(ctx context.Context) (frames []Frame, err error) {
	err = f.c.db.Read(ctx, func(tx *store.Tx) error {
		if time.Since(f.checked) >= followPoll {
			for _, key := range f.keys {
				if err := validKey(tx, key); err != nil {
					return err
				}
			}
			f.checked = time.Now()
		}
		entries, more, err := tx.Feed(f.id, f.cursor, feedBatch)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			f.more = false
			_, err := tx.Session(f.id) // nothing new, or is it gone?
			return err
		}
		for _, e := range entries {
			data, err := json.Marshal(e.Event)
			if err != nil {
				return err
			}
			f.cursor = e.Seq
			frames = append(frames, Frame{string(e.Event.Type()), strconv.FormatInt(e.Seq, 10), data})
			if slices.Contains(f.want, e.Event.Type()) {
				f.deliver(e.Event.ID)
			}
			if end, ok := e.Event.Body.(*api.SpanModelRequestEnd); ok {
				f.endPreviews(end.ModelRequestStartID)
			}
		}
		f.more = more
		return nil
	})
	return frames, err
}

// deliver remembers that an event was delivered: its late previews are dropped.
func (f *Follower) deliver(id api.EventID) {
	if f.delivered = append(f.delivered, id); len(f.delivered) > previewsTracked {
		f.delivered = f.delivered[1:]
	}
}

// endPreviews closes the previews of a model request that has ended, perhaps
// without an event.
func (f *Follower) endPreviews(span api.EventID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = slices.DeleteFunc(f.open, func(o openPreview) bool { return o.span == span })
	f.pending = slices.DeleteFunc(f.pending, func(p preview) bool { return p.span == span })
}

// offer puts a preview into the follower's mailbox. It never blocks: a follower
// that is too far behind loses the rest of that preview, so what it gets stays a
// prefix. One that came in the middle of it gets nothing of it.
func (f *Follower) offer(p preview) {
	if !slices.Contains(f.want, p.typ) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.start {
		if len(f.open) == previewsTracked {
			f.open = f.open[1:]
		}
		f.open = append(f.open, openPreview{id: p.id, span: p.span})
	}
	i := slices.IndexFunc(f.open, func(o openPreview) bool { return o.id == p.id })
	if i < 0 || f.open[i].shed {
		return
	}
	if len(f.pending) >= previewBacklog {
		f.open[i].shed = true
		return
	}
	f.pending = append(f.pending, p)
	f.shown.fire()
}

// takePreviews empties the mailbox, but for previews of events that were
// delivered meanwhile.
func (f *Follower) takePreviews() []preview {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := slices.DeleteFunc(f.pending, func(p preview) bool { return slices.Contains(f.delivered, p.id) })
	f.pending = nil
	return taken
}

func (f *Follower) putBack(previews []preview) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(previews, f.pending...)
}

func previewFrames(previews []preview) []Frame {
	var frames []Frame
	for _, p := range previews {
		data, err := json.Marshal(p.frame)
		if err != nil {
			panic("control: a preview always encodes: " + err.Error())
		}
		name := "event_delta"
		if p.start {
			name = "event_start"
		}
		frames = append(frames, Frame{Name: name, Data: data})
	}
	return frames
}

func (f *Follower) deleted() Frame {
	now := f.c.cfg.Clock().UTC()
	data, err := json.Marshal(api.Event{ID: f.c.NewEventID(), ProcessedAt: &now, Body: &api.SessionDeleted{}})
	if err != nil {
		panic("control: an event always encodes: " + err.Error())
	}
	return Frame{Name: string(api.EvSessionDeleted), Data: data}
}
