package worker

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/api"
)

func FuzzDecodeEvent(f *testing.F) {
	for _, s := range []string{
		`{"type":"agent.tool_use","id":"sevt_1","name":"bash","input":{"command":"ls"},"evaluated_permission":"ask","processed_at":"2026-11-21T10:00:00Z"}`,
		`{"type":"user.tool_confirmation","id":"sevt_2","tool_use_id":"sevt_1","result":"allow","deny_message":null}`,
		`{"type":"user.tool_result","tool_use_id":"sevt_1","content":[]}`,
		`{"type":"user.interrupt","processed_at":null}`,
		`{"type":"session.status_idle","stop_reason":{"type":"requires_action","event_ids":["sevt_1"]}}`,
		`{"type":"session.thread_status_terminated","session_thread_id":"sthr_1"}`,
		`{"type":"span.model_request_end","stop_reason":"end_turn","name":7}`,
		`null`, `[]`, `{`, `{"type":{}}`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := decodeEvent(b)
		if err != nil {
			return
		}
		if ev.Type == "" || len(ev.ID) > eventIDMax || len(ev.Name) > nameMax {
			t.Errorf("event %+v", ev)
		}
		if ev.Type == api.EvAgentToolUse && (ev.ID == "" || ev.Name == "" || len(ev.Input) == 0) {
			t.Errorf("tool use %+v", ev)
		}
		_ = resultEvent(ev.ID, text("x"))
		_ = fileName(ev.ID)
	})
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("event: a\ndata: {}\n\n: comment\n\nevent: ping\ndata: x\r\ndata: y\r\n\r\n"))
	f.Add([]byte("\ufeffdata\n\ndata:\n\nid: 7\nretry: 5\n\n"))
	f.Add([]byte("event: half"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStream(io.NopCloser(bytes.NewReader(b)), func() {})
		defer s.close()
		total := 0
		for {
			_, data, err := s.next()
			if err != nil {
				return
			}
			if total += len(data); total > len(b) {
				t.Fatal("more data came out than went in")
			}
		}
	})
}

func TestStream(t *testing.T) {
	t.Parallel()
	s := newStream(io.NopCloser(strings.NewReader(
		"\ufeff: hello\n\nevent: a\ndata: {\"x\":1}\nid: 5\n\nevent: lost\n\ndata: one\ndata:two\n\nevent: cut\ndata: half")), func() {})
	for _, want := range [][2]string{{"a", `{"x":1}`}, {"", "one\ntwo"}} {
		name, data, err := s.next()
		if err != nil || name != want[0] || string(data) != want[1] {
			t.Errorf("next = %q %q %v, want %q", name, data, err, want)
		}
	}
	if _, _, err := s.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half an event: %v", err)
	}
}

// endless is a stream that never says anything.
type endless string

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

func TestStreamBounds(t *testing.T) {
	t.Parallel()
	for _, s := range []endless{"x", "data: x\n", ": comment\n"} {
		st := newStream(io.NopCloser(s), func() {})
		if _, _, err := st.next(); !errors.Is(err, errEventTooLarge) {
			t.Errorf("endless %q: %v", s, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte("{\"call\":\"c1\",\"state\":\"started\"}\n{\"call\":\"c1\",\"state\":\"finished\",\"event\":{}}\n{\"call\":\"c1\""))
	f.Add([]byte("{\"call\":\"c1\",\"state\":\"unheard of\"}\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		j := &journal{calls: make(map[string]entry)}
		good, damaged := j.load(b)
		if good > int64(len(b)) || damaged && good != 0 {
			t.Errorf("good %d of %d, damaged %v", good, len(b), damaged)
		}
		for id, e := range j.calls {
			if id == "" || !e.valid() {
				t.Errorf("entry %+v", e)
			}
		}
	})
}
