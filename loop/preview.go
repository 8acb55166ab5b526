package loop

import (
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/control"
	"github.com/bailey-platform/bailey/model"
)

// previews shows a response to the clients while it streams. Its texts are
// numbered as they will be in the agent.message: without the empty ones.
type previews struct {
	turn  *control.Turn // nil while nobody watches
	newID func() api.EventID

	shown previewed
	index map[int]int    // block of the response → text of the message
	blank map[int]string // text of blocks that are only white space so far
}

// start makes deltas be shown, if there is anybody to see them. Who comes later
// sees the next response.
func (p *previews) start(turn *control.Turn, newID func() api.EventID) {
	if turn.Previewed() {
		*p = previews{turn: turn, newID: newID, index: map[int]int{}, blank: map[int]string{}}
	}
}

func (p *previews) delta(d model.Delta) {
	if p.turn == nil {
		return
	}
	switch d.Kind {
	case model.ThinkingStart:
		if p.shown.thinking == "" {
			p.shown.thinking = p.newID()
			p.turn.PreviewStart(api.EvAgentThinking, p.shown.thinking)
		}
	case model.Text:
		index, ok := p.index[d.Index]
		if !ok {
			if p.blank[d.Index] += d.Text; strings.TrimSpace(p.blank[d.Index]) == "" {
				return
			}
			index = len(p.index)
			p.index[d.Index], d.Text = index, p.blank[d.Index]
		}
		if p.shown.message == "" {
			p.shown.message = p.newID()
			p.turn.PreviewStart(api.EvAgentMessage, p.shown.message)
		}
		p.turn.PreviewText(p.shown.message, index, d.Text)
	}
}
