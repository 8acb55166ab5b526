package tool_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool"
)

// An agent is the far end of a client, played by a test.
type agent struct {
	t   *testing.T
	in  *io.PipeReader
	out *io.PipeWriter
}

// dial returns a client and the far end that it has greeted.
func dial(t *testing.T) (*tool.Client, agent) {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	a := agent{t, inR, outW}
	go a.send(tool.Reply{Hello: &tool.Hello{Version: tool.WireVersion, Tools: []string{"bash", "read"}}})
	client, err := tool.Dial(t.Context(), inW, outR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		outW.Close()
		inR.Close()
	})
	return client, a
}

func (a agent) next() tool.Request {
	var req tool.Request
	if err := tool.ReadFrame(a.in, &req); err != nil {
		a.t.Errorf("the agent's input: %v", err)
	}
	return req
}

func (a agent) send(reply any) {
	frame, err := tool.EncodeFrame(reply)
	if err != nil {
		a.t.Error(err)
	}
	a.out.Write(frame) // fails if the client gave up, as some tests want
}

func (a agent) answer(seq uint64, text string) {
	result := tool.Result{Content: []json.RawMessage{tool.Text(text)}}
	a.send(tool.Reply{Seq: seq, Result: &result})
}

func TestCallsAreAnsweredInAnyOrder(t *testing.T) {
	t.Parallel()
	client, far := dial(t)
	if diff := cmp.Diff([]string{"bash", "read"}, client.Tools()); diff != "" {
		t.Error(diff)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			want := fmt.Sprint("answer to ", i)
			got, err := client.Call(t.Context(), tool.Call{Tool: "read", Input: json.RawMessage(fmt.Sprint(i))})
			if err != nil {
				t.Error(err)
				return
			}
			if diff := cmp.Diff(tool.Result{Content: []json.RawMessage{tool.Text(want)}}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	var reqs []tool.Request
	for range 20 {
		reqs = append(reqs, far.next())
	}
	for i := len(reqs) - 1; i >= 0; i-- {
		far.answer(reqs[i].Seq, fmt.Sprintf("answer to %s", reqs[i].Call.Input))
	}
	wg.Wait()
}

func TestCancelledCallReturnsItsResult(t *testing.T) {
	t.Parallel()
	client, far := dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		first := far.next()
		cancel()
		if second := far.next(); !second.Cancel || second.Seq != first.Seq {
			t.Errorf("after the call came %+v", second)
		}
		far.answer(first.Seq, "given up")
	}()
	got, err := client.Call(ctx, tool.Call{Tool: "bash"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tool.Result{Content: []json.RawMessage{tool.Text("given up")}}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := client.Call(ctx, tool.Call{Tool: "bash"}); !errors.Is(err, context.Canceled) || errors.Is(err, tool.ErrLost) {
		t.Errorf("a call that never began: %v", err)
	}
}

// An agent that does not answer in time is lost, and everything with it.
func TestSilentAgentIsLost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		read   bool // whether the agent takes the call
		cancel time.Duration
		want   time.Duration
	}{
		"deadline": {read: true, want: 25 * time.Second},
		"cancel":   {read: true, cancel: time.Second, want: 16 * time.Second},
		"deaf":     {want: 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				client, far := dial(t)
				ctx := t.Context()
				if c.cancel > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.cancel)
					defer cancel()
				}
				if c.read {
					go io.Copy(io.Discard, far.in)
				}
				start := time.Now()
				_, err := client.Call(ctx, tool.Call{Tool: "bash", TimeoutMS: 10_000})
				if !errors.Is(err, tool.ErrLost) {
					t.Errorf("error %v", err)
				}
				if got := time.Since(start); got != c.want {
					t.Errorf("lost after %v, want %v", got, c.want)
				}
				if _, err := client.Call(t.Context(), tool.Call{Tool: "read"}); !errors.Is(err, tool.ErrLost) {
					t.Errorf("the next call: %v", err)
				}
				<-client.Done()
			})
		})
	}
}

func TestNoHello(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{
		"silence":       "",
		"end":           "end",
		"a result":      `{"seq":0,"result":{"content":[]}}`,
		"other version": `{"hello":{"version":99,"tools":["bash"]}}`,
		"odd tool":      `{"hello":{"version":1,"tools":["bash\n"]}}`,
		"many tools":    `{"hello":{"version":1,"tools":["a"` + strings.Repeat(`,"a"`, 64) + `]}}`,
		"wrong seq":     `{"seq":1,"hello":{"version":1,"tools":[]}}`,
		"no JSON":       `hello`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				_, inW := io.Pipe()
				outR, outW := io.Pipe()
				defer outW.Close()
				go func() {
					if first == "end" {
						outW.Close()
					} else if first != "" {
						outW.Write(frame(first))
					}
				}()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := tool.Dial(ctx, inW, outR); !errors.Is(err, tool.ErrLost) {
					t.Errorf("error %v", err)
				} else if silent := errors.Is(err, context.DeadlineExceeded); silent != (name == "silence") {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

func TestGarbageLosesTheAgent(t *testing.T) {
	t.Parallel()
	text := `{"type":"text","text":"x"}`
	for name, reply := range map[string]string{
		"half a frame":    "",
		"no JSON":         `{"seq":1,`,
		"nothing":         `{"seq":1}`,
		"second hello":    `{"seq":0,"hello":{"version":1,"tools":["bash"]}}`,
		"not under way":   `{"seq":77,"result":{"content":[` + text + `]}}`,
		"negative seq":    `{"seq":-1,"result":{"content":[` + text + `]}}`,
		"many blocks":     `{"seq":1,"result":{"content":[` + text + strings.Repeat(","+text, 16) + `]}}`,
		"no content":      `{"seq":1,"result":{}}`,
		"odd content":     `{"seq":1,"result":{"content":{}}}`,
		"odd result":      `{"seq":1,"result":[]}`,
		"only commas":     `{"seq":1,"result":{"content":[` + strings.Repeat("0,", 1<<20) + `0]}}`,
		"odd block":       `{"seq":1,"result":{"content":["x"]}}`,
		"tool_use block":  `{"seq":1,"result":{"content":[{"type":"tool_use"}]}}`,
		"image by URL":    `{"seq":1,"result":{"content":[{"type":"image","source":{"type":"url","url":"http://x"}}]}}`,
		"image of HTML":   `{"seq":1,"result":{"content":[{"type":"image","source":{"type":"base64","media_type":"text/html","data":""}}]}}`,
		"image of no use": `{"seq":1,"result":{"content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"%%"}}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, far := dial(t)
			go func() {
				far.next()
				if reply == "" {
					far.out.Write(frame(`{"seq":1}`)[:6])
					far.out.Close()
					return
				}
				far.out.Write(frame(reply))
			}()
			_, err := client.Call(t.Context(), tool.Call{Tool: "bash"})
			if !errors.Is(err, tool.ErrLost) || !errors.Is(err, tool.ErrFrame) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// What an agent adds to a block does not travel on.
func TestResultsAreWrittenAnew(t *testing.T) {
	t.Parallel()
	client, far := dial(t)
	for sent, want := range map[string]string{
		`[]`:                `[{"type":"text","text":"(no output)"}]`,
		`[{"type":"text"}]`: `[{"type":"text","text":"(no output)"}]`,
		`[{"type":"text","text":"a","cache_control":{"type":"ephemeral"},"citations":[{}]}]`:                                                `[{"type":"text","text":"a"}]`,
		`[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA","x":1}}]`:                                        `[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]`,
		`[{"type":"image","title":"x","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}}]`:                            `[{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"AAAA"}}]`,
		`[{"type":"text","text":"two"},{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":""},"title":""}]`: `[{"type":"text","text":"two"},{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":""}}]`,
	} {
		go func() {
			far.out.Write(frame(fmt.Sprintf(`{"seq":%d,"result":{"content":%s,"extra":1}}`, far.next().Seq, sent)))
		}()
		got, err := client.Call(t.Context(), tool.Call{Tool: "read"})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(got.Content)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(text)); diff != "" {
			t.Errorf("%s:\n%s", sent, diff)
		}
	}
}

func TestInputThatCannotBeSent(t *testing.T) {
	t.Parallel()
	client, _ := dial(t)
	for name, input := range map[string]json.RawMessage{
		"no JSON":   json.RawMessage(`{"a":`),
		"too large": json.RawMessage(`"` + strings.Repeat("x", tool.FrameMax) + `"`),
	} {
		got, err := client.Call(t.Context(), tool.Call{Tool: "write", Input: input})
		if err != nil || !got.IsError {
			t.Errorf("%s: %v, %.80s", name, err, got.Content)
		}
	}
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	t.Parallel()
	client, far := dial(t)
	go func() {
		far.next()
		client.Close()
	}()
	if _, err := client.Call(t.Context(), tool.Call{Tool: "bash"}); !errors.Is(err, tool.ErrLost) {
		t.Errorf("error %v", err)
	}
	var req tool.Request
	if err := tool.ReadFrame(far.in, &req); err != io.EOF {
		t.Errorf("the agent's input ended with %v", err)
	}
}

func TestCallTimeoutBounds(t *testing.T) {
	t.Parallel()
	for ms, want := range map[int64]time.Duration{
		0: 2 * time.Minute, -1: 2 * time.Minute, 1500: 1500 * time.Millisecond, 1 << 62: 24 * time.Hour,
	} {
		if got := (tool.Call{TimeoutMS: ms}).Timeout(); got != want {
			t.Errorf("%d ms: %v, want %v", ms, got, want)
		}
	}
}

// frame is the bytes of a frame whose body need not be sound.
func frame(body string) []byte {
	n := len(body)
	return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

func FuzzClient(f *testing.F) {
	f.Add(frame(`{"seq":0,"hello":{"version":1,"tools":["bash"]}}`))
	f.Add(append(frame(`{"hello":{"version":1,"tools":["bash"]}}`), frame(`{"seq":1,"result":{"content":[{"type":"text","text":"x"}]}}`)...))
	f.Add(append(frame(`{"hello":{"version":1,"tools":["bash"]}}`),
		frame(`{"seq":1,"result":{"content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}}`)...))
	f.Fuzz(func(t *testing.T, out []byte) {
		client, err := tool.Dial(t.Context(), discard{}, bytes.NewReader(out))
		if err != nil {
			if !errors.Is(err, tool.ErrLost) {
				t.Fatal(err)
			}
			return
		}
		// The output may hold the answer before the call is made, which is an offence
		// too; either way the call ends, and with postable blocks if it succeeds.
		result, err := client.Call(t.Context(), tool.Call{Tool: "bash"})
		if err != nil {
			if !errors.Is(err, tool.ErrLost) {
				t.Fatal(err)
			}
			return
		}
		if len(result.Content) == 0 {
			t.Fatal("no content")
		}
		for _, block := range result.Content {
			if !json.Valid(block) {
				t.Fatalf("block %q", block)
			}
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frame(`{"seq":1,"call":{"tool":"bash","input":{"command":"true"},"timeout_ms":5}}`))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		var req tool.Request
		if err := tool.ReadFrame(bytes.NewReader(in), &req); err != nil {
			if !errors.Is(err, tool.ErrFrame) && err != io.EOF {
				t.Fatal(err)
			}
			return
		}
		if _, err := tool.EncodeFrame(req); err != nil {
			t.Fatalf("%+v does not go back: %v", req, err)
		}
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }
