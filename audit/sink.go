package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// A Sink is a second place for the lines of a log. Package audit/sink has them.
// Its methods are called by one goroutine at a time.
type Sink interface {
	// Name names the sink in records and errors. It holds no secret.
	Name() string

	// Write takes lines, in order, and returns once it has all of them. After an
	// error it gets the same lines again, perhaps after another start, and may then
	// have some of them twice.
	Write(ctx context.Context, lines []Line) error

	Close() error
}

// A Keeper is a sink that knows what it has. When a log is opened it gets what it
// missed; one that has what the log has not is evidence of tampering, and the log
// is not opened.
type Keeper interface {
	Sink
	// Last returns the number and hash of the last line it has; 0 for none.
	Last() (seq uint64, hash string, err error)
}

// SinkOptions say how a log uses a sink.
type SinkOptions struct {
	Sink

	// Required makes a record that this sink cannot take a refused one. Otherwise
	// the sink takes what it can, from a queue of its own, and the log says what it
	// missed.
	Required bool

	// QueueMax bounds the queue of a sink that is not required, in lines; default
	// 10,000. Lines beyond 16 MiB find no room either.
	QueueMax int
}

const (
	defaultQueueMax = 10_000
	queueBytesMax   = 16 << 20
	sinkBatch       = 500     // lines in one write
	sinkBatchBytes  = 4 << 20 // or rather fewer, if they are long

	sinkTimeout  = 5 * time.Second // of one write
	sinkDrain    = 3 * time.Second // for what is queued when the log is closed
	sinkRetryMin = 100 * time.Millisecond
	sinkRetryMax = 30 * time.Second
	catchUpMax   = 10 * time.Minute
)

// An outlet is a sink with what it has yet to get.
type outlet struct {
	SinkOptions
	filled chan struct{} // 1: there is something in the queue

	// Guarded by mu. A required sink's queue holds what it is owed: it is empty
	// after every record that was not refused.
	mu      sync.Mutex
	queue   []Line
	bytes   int
	missed  drops // since the log last said so
	telling int   // of missed.count, what the log is about to say
	total   int   // ever
}

// drops are lines that a sink did not get.
type drops struct {
	count       int
	first, last uint64
}

func newOutlet(o SinkOptions) *outlet {
	if o.QueueMax == 0 {
		o.QueueMax = defaultQueueMax
	}
	return &outlet{SinkOptions: o, filled: make(chan struct{}, 1)}
}

// offer queues lines, or counts them as missed.
func (o *outlet) offer(lines []Line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lines {
		if !o.Required && (len(o.queue) >= o.QueueMax || o.bytes+len(l.JSON) > queueBytesMax) {
			o.miss(l)
			continue
		}
		o.queue = append(o.queue, l)
		o.bytes += len(l.JSON)
	}
	o.wake()
}

func (o *outlet) miss(l Line) {
	if o.missed.count == 0 {
		o.missed.first = l.Seq
	}
	o.missed.count++
	o.missed.last = l.Seq
	o.total++
}

// drops returns what the log has to say about this sink: once there is room
// again, so that it is said once and not for every line.
func (o *outlet) drops() drops {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) > o.QueueMax/2 || o.bytes > queueBytesMax/2 {
		return drops{}
	}
	o.telling = o.missed.count
	return o.missed
}

// confessed notes that the log has said what drops returned.
func (o *outlet) confessed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.missed.count -= o.telling
	o.missed.first = o.missed.last
	o.telling = 0
}

func (o *outlet) missedEver() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.total
}

// head returns the lines to write next.
func (o *outlet) head() []Line {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, bytes := 0, 0
	for n < min(len(o.queue), sinkBatch) && (n == 0 || bytes+len(o.queue[n].JSON) <= sinkBatchBytes) {
		bytes += len(o.queue[n].JSON)
		n++
	}
	return o.queue[:n]
}

// taken drops the first n lines of the queue.
func (o *outlet) taken(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range o.queue[:n] {
		o.bytes -= len(l.JSON)
	}
	o.queue = o.queue[n:]
	if len(o.queue) == 0 {
		o.queue = nil
	}
}

// flush writes the queue until it is empty.
func (o *outlet) flush(ctx context.Context) error {
	for {
		lines := o.head()
		if len(lines) == 0 {
			return nil
		}
		one, cancel := context.WithTimeout(ctx, sinkTimeout)
		err := o.Write(one, lines)
		cancel()
		if err != nil {
			return fmt.Errorf("audit sink %s: %w", o.Name(), err)
		}
		o.taken(len(lines))
	}
}

// run empties the queue of a best-effort sink until ctx ends, and then for a
// moment more. What is left after that is missed.
func (o *outlet) run(ctx context.Context, log *slog.Logger) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-o.filled:
		}
		err := o.flush(ctx)
		if err == nil || ctx.Err() != nil {
			wait = 0
			continue
		}
		if wait == 0 {
			log.Warn("an audit sink takes nothing; trying again", "error", err)
		}
		wait = min(max(2*wait, sinkRetryMin), sinkRetryMax)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		o.wake()
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), sinkDrain)
	defer cancel()
	if err := o.flush(drain); err != nil {
		log.Warn("an audit sink did not take its last lines", "error", err)
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, l := range o.queue {
			o.miss(l)
		}
		o.queue, o.bytes = nil, 0
	}
}

func (o *outlet) wake() {
	select {
	case o.filled <- struct{}{}:
	default:
	}
}

// settle gives the required sinks what they are owed. The caller holds commitMu.
func (l *Log) settle() error {
	for _, s := range l.sinks {
		if !s.Required {
			continue
		}
		if err := s.flush(context.Background()); err != nil {
			return err
		}
	}
	return nil
}

// catchUp gives the sinks that know what they have what they have not.
func (l *Log) catchUp() error {
	for _, s := range l.sinks {
		k, ok := s.Sink.(Keeper)
		if !ok {
			continue
		}
		seq, hash, err := k.Last()
		if err == nil {
			err = l.replay(k, seq, hash)
		}
		switch {
		case err == nil:
			s.queue, s.bytes = nil, 0 // among what was replayed
		case s.Required || errors.Is(err, errOther):
			return fmt.Errorf("audit sink %s: %w", s.Name(), err)
		default:
			l.Logger.Warn("an audit sink could not catch up; it has a gap", "sink", s.Name(), "error", err)
		}
	}
	return l.settle()
}

// errOther is what is wrong with a sink whose lines are not the log's.
var errOther = errors.New("it holds a record that this log does not: one of the two was replaced or cut; find out which before you move either aside")

// replay writes the lines after seq, whose hash is given, to a sink.
func (l *Log) replay(k Keeper, seq uint64, hash string) error {
	if seq > l.seq || seq == l.seq && hash != l.hash {
		return errOther
	}
	if seq == l.seq {
		return nil
	}
	log, err := OpenSegments(l.path)
	if err != nil {
		return err
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), catchUpMax)
	defer cancel()
	var batch []Line
	for e, err := range Entries(log, Filter{}) {
		if err != nil {
			return err
		}
		switch {
		case e.Seq < seq:
			continue
		case e.Seq == seq:
			if e.Hash != hash {
				return errOther
			}
			continue
		}
		batch = append(batch, Line{Seq: e.Seq, Time: e.Time, Action: e.Action, JSON: e.Raw, Hash: e.Hash})
		if len(batch) == sinkBatch || e.Seq == l.seq {
			if err := k.Write(ctx, batch); err != nil {
				return err
			}
			batch = nil
		}
	}
	return nil
}
