package loop

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/model"
)

// longLog is the log of a session of n events: one long turn of model requests
// with two calls each, whose outputs are 1 KiB. It ends with a request to make.
func longLog(n int) []api.Entry {
	log := &memLog{}
	s := &State{compactAt: 1 << 40}
	s.Look(testSession(), "sthr_1", false)
	read := 0
	catchUp := func() {
		for ; read < len(log.entries); read++ {
			if err := s.Apply(log.entries[read]); err != nil {
				panic(err)
			}
		}
	}
	log.append(api.Draft{Body: &api.UserMessage{Content: api.Content{api.TextBlock("go")}}})
	output := api.Content{api.TextBlock(strings.Repeat("x", 1<<10))}
	for len(log.entries) < n {
		catchUp()
		p, err := s.clone().settle(nil, time.Time{}, false, log.newID)
		if err != nil {
			panic(err)
		}
		log.append(p.drafts...)
		catchUp()
		res := &model.Response{StopReason: "tool_use", Content: []json.RawMessage{
			json.RawMessage(`{"type":"thinking","thinking":"` + strings.Repeat("hm ", 100) + `","signature":"` + strings.Repeat("s", 300) + `"}`),
			api.TextBlock("I go on."),
			json.RawMessage(`{"type":"tool_use","id":"toolu_1","name":"read","input":{"file_path":"a"}}`),
			json.RawMessage(`{"type":"tool_use","id":"toolu_2","name":"read","input":{"file_path":"b"}}`),
		}}
		p, err = s.clone().settle(s.respond(res, previewed{}), time.Time{}, false, log.newID)
		if err != nil {
			panic(err)
		}
		log.append(p.drafts...)
		catchUp()
		for _, id := range s.pending() {
			log.append(api.Draft{Body: &api.UserToolResult{ToolUseID: id, Content: output}})
		}
	}
	return log.entries
}

func folded(tb testing.TB, entries []api.Entry) *State {
	s := &State{compactAt: 1 << 40}
	for _, e := range entries {
		if err := s.Apply(e); err != nil {
			tb.Fatal(err)
		}
	}
	s.Look(testSession(), "sthr_1", false)
	return s
}

// BenchmarkFold10k is the claim of a session with 10,000 events: all of them are
// folded.
func BenchmarkFold10k(b *testing.B) {
	entries := longLog(10_000)
	b.ReportAllocs()
	for b.Loop() {
		folded(b, entries)
	}
}

// BenchmarkSettle10k is every later write of that turn.
func BenchmarkSettle10k(b *testing.B) {
	s := folded(b, longLog(10_000))
	newID := counter()
	b.ReportAllocs()
	for b.Loop() {
		if p, err := s.clone().settle(nil, time.Time{}, false, newID); err != nil || p.then != CallModel {
			b.Fatal(p, err)
		}
	}
}

// BenchmarkNext10k is the rule alone.
func BenchmarkNext10k(b *testing.B) {
	s := folded(b, longLog(10_000))
	b.ReportAllocs()
	for b.Loop() {
		if s.Next().Do != CallModel {
			b.Fatal("no request")
		}
	}
}

// BenchmarkMessages10k is the request that follows.
func BenchmarkMessages10k(b *testing.B) {
	s := folded(b, longLog(10_000))
	b.ReportAllocs()
	for b.Loop() {
		s.modelRequest()
	}
}
