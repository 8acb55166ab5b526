package gvisor

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/bailey-platform/bailey/sandbox"
)

// A scrubbed error has words in which nothing of the host has a name: a model may come
// to read them.
type scrubbed struct {
	words string
	err   error
}

func (e *scrubbed) Error() string { return e.words }
func (e *scrubbed) Unwrap() error { return e.err }

// scrub returns words in which what of the host is in the box is called what it is
// called there, and the rest has no name.
func (b *box) scrub(words string) string {
	names := []string{}
	if b.stage != nil {
		names = append(names, b.stage.Root()+"/", "/", b.stage.Root(), "/")
	}
	names = append(names, b.dir, "(its state)", b.spec.WorkDir, sandbox.WorkPath)
	for _, host := range []struct{ name, called string }{{b.spec.Agent, sandbox.AgentPath}, {b.spec.Image, "(its image)"}} {
		if host.name != "" {
			names = append(names, host.name, host.called)
		}
	}
	for _, mounts := range []map[string]string{b.spec.ReadOnly, b.spec.Files} {
		for target, source := range mounts {
			names = append(names, source, target)
		}
	}
	names = append(names, b.host.dir, "(state)")
	return strings.NewReplacer(names...).Replace(words)
}

func (b *box) scrubError(err error) error { return &scrubbed{b.scrub(err.Error()), err} }

// message returns the last message in gVisor's log, whose lines are JSON.
func message(log []byte) string {
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	last := lines[len(lines)-1]
	var entry struct{ Msg string }
	if json.Unmarshal(last, &entry) == nil && entry.Msg != "" {
		return entry.Msg
	}
	return strings.ToValidUTF8(string(last), "?")
}
