package loop

import (
	"fmt"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// A plan is one write of a turn, and what the turn does after it.
type plan struct {
	drafts []api.Draft

	// then is CallModel or Compact when the write starts a request, RunCalls and Equip when
	// there is something to be done with MCP servers, and Rest when it gives the turn back.
	then   Action
	wakeAt time.Time // with Rest: look again then; zero is when something arrives
}

// settleMax bounds the steps of one plan. Each step closes what the one before it
// left open; the longest such chain has seven links.
const settleMax = 16

// settle writes first, then takes steps until one needs something else than a
// write. All of it goes into one plan and is folded into s, which from then on is
// the state after the plan was written. With stopping set, the turn is given back
// where it would ask the model.
func (s *State) settle(first []api.Draft, now time.Time, stopping bool, newID func() api.EventID) (plan, error) {
	p := plan{then: Rest}
	if err := s.write(&p, first, newID); err != nil {
		return p, err
	}
	for range settleMax {
		step := s.Next()
		acts := step.Do != Append
		switch {
		case step.Do == Rest:
			return p, nil
		case acts && stopping && len(s.running()) > 0:
			p.then = RunCalls // what was begun is finished, and nothing else begun
			return p, nil
		case acts && stopping:
			p.wakeAt = now
			return p, nil
		case acts && step.NotBefore.After(now):
			p.wakeAt = step.NotBefore
			return p, nil
		}
		if err := s.write(&p, step.Drafts, newID); err != nil {
			return p, err
		}
		if acts {
			p.then = step.Do
			return p, nil
		}
	}
	return p, fmt.Errorf("the session does not settle: no end after %d steps", settleMax)
}

// write adds drafts to a plan, and folds them as the log will give them back.
func (s *State) write(p *plan, drafts []api.Draft, newID func() api.EventID) error {
	s.writing = true
	defer func() { s.writing = false }()
	for _, d := range drafts {
		if d.ID == "" {
			d.ID = newID()
		}
		p.drafts = append(p.drafts, d)
		body, private := d.Body, d.Private
		if body == nil {
			i := slices.IndexFunc(s.queue, func(q queued) bool { return q.id == d.ID })
			if i < 0 {
				return fmt.Errorf("%s is not queued and cannot be taken", d.ID)
			}
			body = s.queue[i].body
		}
		if err := s.fold(api.Entry{Event: api.Event{ID: d.ID, Body: body}, Private: private}); err != nil {
			return err
		}
	}
	return nil
}
