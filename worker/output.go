package worker

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/bailey-platform/bailey/tool"
)

// The output of an MCP tool can be too long for the model. It is then shown a part of it
// and told of a file, which the plane does not have: the file is made in the box when a
// call first names it.

// outputsMax bounds the files that a session remembers to make.
const outputsMax = 1024

// noteOutput takes in an event that tells of such a file.
func (s *session) noteOutput(ev event) {
	if ev.OutputFile == "" || len(s.outputs) >= outputsMax {
		return
	}
	if s.outputs == nil {
		s.outputs = make(map[string]string)
	}
	if _, known := s.outputs[ev.ID]; !known {
		s.outputs[ev.ID] = ev.OutputFile
	}
}

// outputsFor returns the files that a call names and that were not made yet.
func (s *session) outputsFor(ev event) map[string]string {
	var named map[string]string
	for id, file := range s.outputs {
		if file != "" && bytes.Contains(ev.Input, []byte(file)) {
			if named == nil {
				named = make(map[string]string)
			}
			named[id] = file
			s.outputs[id] = "" // once
		}
	}
	return named
}

// makeOutputs makes files in the box that a call is about to read. One that cannot be made
// is missed by the call, which says so.
func (s *session) makeOutputs(ctx context.Context, now *running, c *call) {
	for id, file := range c.outputs {
		text, err := s.plane.output(ctx, s.cred, s.id, id)
		if err == nil {
			var input []byte
			if input, err = json.Marshal(map[string]string{"file_path": file, "content": text}); err == nil {
				_, err = s.box.call(ctx, now, c.event.ID, tool.Call{Tool: "write", Input: input, TimeoutMS: s.toolTimeout.Milliseconds()})
			}
		}
		if err != nil {
			s.log.Warn("the file of a long output was not made", "event_id", id, "file", file, "error", err)
		}
	}
}
