package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	stdlog "log"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTextLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := NewLogger(&out, LogOptions{Format: FormatText})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("not shown")
	log.With("part", "loop").WithGroup("turn").Warn("slow", "session", "sesn_1", "note", "two words")
	log.Error("refused", "error", errors.New("key sk-ant-api03-abcdef"))

	got := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d`).ReplaceAllString(out.String(), "TIME")
	want := "TIME WARN  slow part=loop turn.session=sesn_1 turn.note=\"two words\"\n" +
		"TIME ERROR refused error=\"key sk-ant-[redacted]\"\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestStandardLogIsCaptured(t *testing.T) { // it changes the process, so not parallel
	defer stdlog.SetOutput(os.Stderr)
	defer stdlog.SetFlags(stdlog.Flags())
	var out bytes.Buffer
	log, err := NewLogger(&out, LogOptions{Format: FormatText})
	if err != nil {
		t.Fatal(err)
	}
	CaptureStandard(log)
	stdlog.Printf("a library says %d", 1)
	if !strings.Contains(out.String(), "WARN  a library says 1") {
		t.Errorf("the log is %q", out.String())
	}
}

func TestAutoFormatIsJSONAwayFromATerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := NewLogger(&out, LogOptions{Level: slog.LevelDebug})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("sk-ant-oat01-x in the message", slog.Group("g", "deep", "sk-ant-oat01-y"), "took", 1500*time.Millisecond)
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if record["took"] != "1.5s" {
		t.Errorf("took = %v, want 1.5s", record["took"])
	}
	if strings.Contains(out.String(), "oat01") {
		t.Errorf("a credential reached the log: %s", &out)
	}
}

func TestColoursOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	for _, colour := range []bool{false, true} {
		var out bytes.Buffer
		log, err := NewLogger(&out, LogOptions{Terminal: true, Colour: colour})
		if err != nil {
			t.Fatal(err)
		}
		log.Info("x")
		if got := strings.Contains(out.String(), "\x1b["); got != colour {
			t.Errorf("colour %v: escape codes in the log: %v", colour, got)
		}
	}
}

func TestUnknownFormatIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := NewLogger(&bytes.Buffer{}, LogOptions{Format: "xml"}); err == nil {
		t.Error("no error")
	}
}

func TestRegistryReportsTheBuild(t *testing.T) {
	t.Parallel()
	families, err := NewRegistry(Build{Version: "v1", Go: "go1"}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	for _, want := range []string{"bailey_build_info", "go_goroutines", "process_open_fds"} {
		if !names[want] {
			t.Errorf("no metric %s", want)
		}
	}
}
