package tunnel

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// FuzzReadFrame reads what an end sends before a stream begins: nothing of it may
// panic, nor be larger than was allowed, and what can be read can be written.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{byte(FramePing), 0, 0}, 0)
	f.Add(AppendFrame(nil, FrameAttach, []byte(`{"token":"x","connector_id":"y"}`)), MessageMax)
	f.Add(AppendFrame(nil, FrameAttached, []byte(`{"attachment_id":"tatt_1","ticket":"AAAA","edges":[{}]}`)), MessageMax)
	f.Add(AppendFrame(nil, FrameOpen, []byte(`{"tunnel_id":"tnl_1","key":"k"}`)), 4096)
	f.Add(AppendFrame(nil, FrameOpened, []byte(`{"connector":"a","connectors":["a"]}`)), 4096)
	f.Add(AppendFrame(nil, FrameRefused, []byte(`{"stage":"no_route","retry_after_ns":-1}`)), 4096)
	f.Add([]byte{byte(FrameData), 0xff, 0xff}, MessageMax)
	f.Fuzz(func(t *testing.T, data []byte, most int) {
		kind, payload, err := ReadFrame(bytes.NewReader(data), most)
		if err != nil {
			return
		}
		if len(payload) > max(most, 0) {
			t.Fatalf("%d bytes, and %d were allowed", len(payload), most)
		}
		if b := AppendFrame(nil, kind, payload); !bytes.Equal(b, data[:len(b)]) {
			t.Fatalf("%x was written as %x", data, b)
		}
		ParseAttach(payload)
		ParseAttached(payload)
		ParseOpen(payload)
		ParseOpened(payload)
		if e := ParseRefusal(payload); e == nil || e.Stage == "" || e.RetryAfter < 0 {
			t.Fatalf("a refusal became %v", e)
		}
	})
}

// FuzzStream has a stream read whatever the other end sends.
func FuzzStream(f *testing.F) {
	f.Add(append(AppendFrame(nil, FrameData, []byte("hello")), AppendFrame(nil, FrameEnd, nil)...))
	f.Add(append(AppendFrame(nil, FrameOpened, []byte(`{"connector":"a"}`)), AppendFrame(nil, FrameDrain, nil)...))
	f.Add([]byte{byte(FramePing), 0, 0, byte(FrameRefused), 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		s := NewStream(a, StreamConfig{OnDrain: func() {}})
		go io.Copy(io.Discard, b)
		go func() {
			b.Write(data)
			b.Close()
		}()
		s.SetDeadline(time.Now().Add(10 * time.Second))
		n, err := io.Copy(io.Discard, s)
		if n > int64(len(data)) {
			t.Fatalf("%d bytes came of %d", n, len(data))
		}
		if isTimeout(err) {
			t.Fatal("it waits for what cannot come")
		}
		s.Close()
	})
}

// FuzzErrorHeader reads what a gateway says of itself.
func FuzzErrorHeader(f *testing.F) {
	f.Add(`no_route; detail="x"`, "3")
	f.Add(`x;detail="\u0000\n"`, "-1")
	f.Fuzz(func(t *testing.T, value, after string) {
		e := ErrorFromHeader(http.Header{ErrorHeader: {value}, "Retry-After": {after}})
		if e == nil {
			if value != "" {
				t.Fatal("it was overlooked")
			}
			return
		}
		if s := e.HTTPStatus(); s < 502 || s > 504 || !e.Stage.plausible() || e.RetryAfter < 0 || e.RetryAfter > retryAfterMax {
			t.Fatalf("%q became %+v", value, e)
		}
		h := http.Header{}
		e.SetHeader(h)
		if again := ErrorFromHeader(h); again.Stage != e.Stage || again.Detail != e.Detail {
			t.Fatalf("%+v became %+v", e, again)
		}
	})
}
