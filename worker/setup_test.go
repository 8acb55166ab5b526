package worker

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bailey-platform/bailey/tool"
)

// setUp plays a box in which the set-up says something, and then comes to its end or not.
func setUp(said string, ends bool) func(context.Context, *fakeBox, tool.Call) tool.Result {
	last := regexp.MustCompile(`echo '([^']+)'`)
	return func(ctx context.Context, b *fakeBox, c tool.Call) tool.Result {
		word := last.FindStringSubmatch(string(c.Input))
		switch {
		case word == nil:
			return echo(ctx, b, c)
		case ends:
			return text(said + word[1] + "\n\n")
		}
		return tool.ErrorResult(said + "exit code: 1")
	}
}

func TestABoxIsSetUpBeforeItsFirstCall(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.setRun(setUp("installed\n", true))
		f.plane.session("sesn_1", []toolUse{bash("c1"), bash("c2")})
		w := f.start(func(c *Config) { c.Setup = "install things" })
		f.stopped("sesn_1")
		w.stop()
		f.wantResult("sesn_1", "c1", `bash {"command":"c1"}`, false)
		ran := f.driver.ran()
		if len(ran) != 3 || !strings.Contains(ran[0], `(set -e\ninstall things\n)`) {
			t.Errorf("ran %q", ran)
		}
		if diff := cmp.Diff([]string{`bash {"command":"c1"}`, `bash {"command":"c2"}`}, ran[1:]); diff != "" {
			t.Error(diff)
		}
	})
}

func TestABoxThatCannotBeSetUpIsNotUsedAndItsCallIsTold(t *testing.T) {
	virtual(t, func(f *field) {
		f.driver.setRun(setUp("packages.pip: no such package\n", false))
		f.plane.session("sesn_1", []toolUse{bash("c1")})
		w := f.start(func(c *Config) { c.Setup = "install things" })
		f.stopped("sesn_1")
		w.stop()
		f.wantResult("sesn_1", "c1", "the box could not be set up: packages.pip: no such package", true)
		if slices.Contains(f.driver.ran(), `bash {"command":"c1"}`) {
			t.Error("the call ran all the same")
		}
	})
}
