package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"sync"
	"time"
)

// The formats of a log.
const (
	FormatAuto = "auto" // FormatText on a terminal, FormatJSON otherwise
	FormatText = "text" // short lines for a person
	FormatJSON = "json" // one JSON object a line, for machines
)

// LogOptions say what a log looks like.
type LogOptions struct {
	Format   string // one of the Format constants; "" is FormatAuto
	Level    slog.Leveler
	Terminal bool // the writer is a terminal
	Colour   bool // FormatText may use colours
}

// NewLogger returns a logger that writes to w, a whole record at a time. No
// record leaves it with a credential in it: see [Redact]. It is safe for
// concurrent use.
func NewLogger(w io.Writer, o LogOptions) (*slog.Logger, error) {
	if o.Level == nil {
		o.Level = slog.LevelInfo
	}
	text := redacting{w, Redact}
	switch o.Format {
	case FormatJSON:
	case FormatText:
		return slog.New(newHuman(text, o)), nil
	case FormatAuto, "":
		if o.Terminal {
			return slog.New(newHuman(text, o)), nil
		}
	default:
		return nil, fmt.Errorf("log format %q is not one of auto, text, json", o.Format)
	}
	return slog.New(slog.NewJSONHandler(redacting{w, redactJSON}, &slog.HandlerOptions{Level: o.Level, ReplaceAttr: durationText})), nil
}

// CaptureStandard has what libraries print through the standard library's log package
// go to log, as warnings. It changes the process: it is for a program that starts.
func CaptureStandard(log *slog.Logger) {
	stdlog.SetFlags(0)
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelWarn).Writer())
}

// durationText writes a duration as 1.5s rather than as a number of nanoseconds.
func durationText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// human writes "15:04:05 INFO  message key=value". The attributes, with all
// their rules of groups and quoting, are left to slog's own text handler.
type human struct {
	out    *sync.Mutex // held while buf and w are used; shared by derived handlers
	buf    *bytes.Buffer
	w      io.Writer
	attrs  slog.Handler // writes to buf
	colour bool
}

func newHuman(w io.Writer, o LogOptions) *human {
	buf := new(bytes.Buffer)
	return &human{
		out: new(sync.Mutex),
		buf: buf,
		w:   w,
		attrs: slog.NewTextHandler(buf, &slog.HandlerOptions{
			Level: o.Level,
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
					return slog.Attr{}
				}
				return a
			},
		}),
		colour: o.Colour,
	}
}

func (h *human) Enabled(ctx context.Context, l slog.Level) bool { return h.attrs.Enabled(ctx, l) }

func (h *human) Handle(ctx context.Context, r slog.Record) error {
	h.out.Lock()
	defer h.out.Unlock()
	h.buf.Reset()
	begin, end := "", ""
	if h.colour {
		begin, end = levelColour(r.Level), "\x1b[0m"
	}
	fmt.Fprintf(h.buf, "%s %s%-5s%s %s ", r.Time.Format(time.TimeOnly), begin, r.Level, end, r.Message)
	if err := h.attrs.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.w.Write(h.buf.Bytes())
	return err
}

func (h *human) WithAttrs(as []slog.Attr) slog.Handler {
	c := *h
	c.attrs = h.attrs.WithAttrs(as)
	return &c
}

func (h *human) WithGroup(name string) slog.Handler {
	c := *h
	c.attrs = h.attrs.WithGroup(name)
	return &c
}

func levelColour(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "\x1b[31m" // red
	case l >= slog.LevelWarn:
		return "\x1b[33m" // yellow
	case l >= slog.LevelInfo:
		return "\x1b[32m" // green
	}
	return "\x1b[2m" // dim
}
