package worker

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/tool"
)

// The file that holds a long output is made when a call first names it, and only then.
func TestOutputFileIsMadeForTheCallThatNamesIt(t *testing.T) {
	virtual(t, func(f *field) {
		var mu sync.Mutex
		var ran []string
		f.driver.setRun(func(_ context.Context, _ *fakeBox, c tool.Call) tool.Result {
			mu.Lock()
			defer mu.Unlock()
			ran = append(ran, c.Tool+" "+string(c.Input))
			return text("done")
		})
		asked := 0
		f.plane.setFault(func(r *http.Request) (*fakeReply, error) {
			if !strings.HasSuffix(r.URL.Path, "/output") {
				return nil, nil
			}
			asked++
			return &fakeReply{status: 200, body: "line 1\nline 2"}, nil
		})
		s := f.plane.session("sesn_1")
		f.plane.say("sesn_1", "agent.mcp_tool_result", map[string]any{"mcp_tool_use_id": "m1", "bailey_output_file": ".bailey/mcp/m1.txt"})
		f.plane.say("sesn_1", "agent.mcp_tool_result", map[string]any{"mcp_tool_use_id": "m2", "bailey_output_file": "../m2.txt"})
		f.start(func(c *Config) { c.MaxIdle = -1 })
		time.Sleep(time.Second)
		ask := func(id, command string) {
			f.plane.mu.Lock()
			u := bash(id)
			u.input = `{"command":"` + command + `"}`
			f.plane.ask(s, u)
			f.plane.mu.Unlock()
			time.Sleep(5 * time.Second)
		}
		ask("c1", "ls")
		ask("c2", "wc -l .bailey/mcp/m1.txt")
		ask("c3", "cat .bailey/mcp/m1.txt ../m2.txt")
		mu.Lock()
		defer mu.Unlock()
		want := []string{
			`bash {"command":"ls"}`,
			`write {"content":"line 1\nline 2","file_path":".bailey/mcp/m1.txt"}`,
			`bash {"command":"wc -l .bailey/mcp/m1.txt"}`,
			`bash {"command":"cat .bailey/mcp/m1.txt ../m2.txt"}`,
		}
		if strings.Join(ran, "\n") != strings.Join(want, "\n") || asked != 1 {
			t.Errorf("asked %d times; ran:\n%s", asked, strings.Join(ran, "\n"))
		}
	})
}
