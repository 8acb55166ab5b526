package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
)

// visible reads a session with get if the credential reaches it. "Not yours" and
// "not there" are the same answer.
func (c *Control) visible(get func(api.SessionID) (*store.Session, error), p Principal, id api.SessionID) (*store.Session, error) {
	s, err := get(id)
	if err != nil {
		return nil, found(err, "session", string(id))
	}
	if !p.sees(s) {
		return nil, api.NotFound("session %s was not found", id)
	}
	return s, nil
}

// public fills the parts of the session object that are derived from its row.
func public(s *store.Session, now time.Time) *api.Session {
	out := s.Session
	active := activeTime(s, now).Seconds()
	out.Usage = usage(s, now)
	end := now
	if s.Status == api.StatusTerminated {
		end = s.UpdatedAt
	}
	out.Stats = api.SessionStats{ActiveSeconds: active, DurationSeconds: end.Sub(s.CreatedAt).Seconds()}
	return &out
}

func activeTime(s *store.Session, now time.Time) time.Duration {
	if s.RunningSince == nil {
		return s.Active
	}
	return s.Active + now.Sub(*s.RunningSince)
}

func usage(s *store.Session, now time.Time) api.Usage {
	u := api.Usage{Tokens: s.Tokens, ActiveSeconds: activeTime(s, now).Seconds()}
	if !s.Unpriced {
		u.ListCost = &s.Cost
	}
	return u
}

// setStatus moves a session to a status and keeps its running time.
func setStatus(s *store.Session, status api.SessionStatus, now time.Time) {
	switch {
	case status == api.StatusRunning && s.RunningSince == nil:
		s.RunningSince = &now
	case status != api.StatusRunning:
		s.Active, s.RunningSince = activeTime(s, now), nil
	}
	s.Status = status
}

// CreateSession starts a session from a snapshot of an agent. With initial events
// it is running at once.
func (c *Control) CreateSession(ctx context.Context, p Principal, in api.SessionCreate) (*api.Session, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if err := checkSessionCreate(&in); err != nil {
		return nil, err
	}
	initial, err := c.initialEvents(in.InitialEvents)
	if err != nil {
		return nil, err
	}
	if err := c.servable(ctx, in.EnvironmentID); err != nil {
		return nil, err
	}
	var out *api.Session
	err = c.write(ctx, func(tx *store.Tx) error {
		env, err := sessionEnvironment(tx, in)
		if err != nil {
			return err
		}
		agent, err := sessionAgent(tx, in.Agent)
		if err != nil {
			return err
		}
		if err := checkMCPServers(env, agent); err != nil {
			return err
		}
		if err := sessionVaults(tx, in.VaultIDs); err != nil {
			return err
		}
		if in.Budget != nil {
			if _, ok := c.price(agent.Model.ID, api.Tokens{}); !ok {
				return api.InvalidCode("model_not_budgetable", "budget: no list price is known for model %s; set one under `prices` in the server's configuration", agent.Model.ID)
			}
		}
		s := &store.Session{
			Session: api.Session{
				ID: newID[api.SessionID](c, api.PrefixSession), Type: "session", Status: api.StatusIdle,
				Title: in.Title, Agent: agent, EnvironmentID: env.ID, Metadata: in.Metadata, Budget: in.Budget,
				Resources: []json.RawMessage{}, VaultIDs: append([]api.VaultID{}, in.VaultIDs...), OutcomeEvaluations: []json.RawMessage{},
				CreatedAt: tx.Now, UpdatedAt: tx.Now,
			},
			ThreadID: newID[api.ThreadID](c, api.PrefixThread),
		}
		if s.Metadata == nil {
			s.Metadata = api.Metadata{}
		}
		if len(initial) > 0 {
			setStatus(s, api.StatusRunning, tx.Now)
			wake(tx, s)
		}
		if err := tx.InsertSession(s); err != nil {
			return err
		}
		if _, err := tx.Append(s, initial); err != nil {
			return err
		}
		if err := tx.UpdateSession(s); err != nil {
			return err
		}
		out = public(s, tx.Now)
		return c.enqueue(tx, s, 0)
	})
	return out, err
}

func checkSessionCreate(in *api.SessionCreate) error {
	if err := in.Agent.Check(); err != nil {
		return err
	}
	if err := api.CheckID("environment_id", string(in.EnvironmentID)); err != nil {
		return err
	}
	if err := api.CheckTitle(in.Title); err != nil {
		return err
	}
	if err := in.Metadata.Check(); err != nil {
		return err
	}
	if len(in.VaultIDs) > api.SessionVaultsMax {
		return api.Invalid("vault_ids: at most %d, got %d", api.SessionVaultsMax, len(in.VaultIDs))
	}
	for i, id := range in.VaultIDs {
		if err := api.CheckID(fmt.Sprintf("vault_ids.%d", i), string(id)); err != nil {
			return err
		}
	}
	if in.Budget != nil {
		return in.Budget.Check()
	}
	return nil
}

func (c *Control) initialEvents(raw []json.RawMessage) ([]api.Draft, error) {
	if len(raw) > api.InitialEventsMax {
		return nil, api.Invalid("initial_events: at most %d, got %d", api.InitialEventsMax, len(raw))
	}
	var drafts []api.Draft
	for i, r := range raw {
		body, err := api.ParseClientEvent(r)
		if err != nil {
			return nil, nested(err, "initial_events.%d", i)
		}
		if _, ok := body.(*api.UserMessage); !ok {
			return nil, api.Invalid("initial_events.%d.type: only user.message is accepted here", i)
		}
		drafts = append(drafts, api.Draft{ID: c.NewEventID(), Body: body, Queued: true})
	}
	return drafts, nil
}

// nested puts the place of a list entry before a public error.
func nested(err error, format string, args ...any) error {
	if e := api.AsError(err); e != nil {
		e.Message = fmt.Sprintf(format, args...) + "." + e.Message
	}
	return err
}

// servable refuses a session of a cloud environment if there is nothing to run it in.
// Finding that out may take too long for a transaction; an environment's kind never
// changes.
func (c *Control) servable(ctx context.Context, id api.EnvironmentID) error {
	var cloud bool
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		env, err := tx.Environment(id)
		if err == nil {
			cloud = env.Config.Type == api.EnvCloud && env.ArchivedAt == nil
		}
		return found(err, "environment", string(id))
	})
	if err != nil || !cloud {
		return err
	}
	return c.cloudReady(ctx, id)
}

func sessionEnvironment(tx *store.Tx, in api.SessionCreate) (*api.Environment, error) {
	env, err := tx.PinEnvironment(in.EnvironmentID)
	switch {
	case err != nil:
		return nil, found(err, "environment", string(in.EnvironmentID))
	case env.ArchivedAt != nil:
		return nil, api.Invalid("environment %s is archived; new sessions cannot use it", env.ID)
	}
	for i, r := range in.Resources {
		var res struct{ Type string }
		if json.Unmarshal(r, &res) == nil && res.Type == "memory_store" {
			return nil, api.Invalid("resources.%d: memory stores are not supported by this server yet", i)
		}
	}
	if len(in.Resources) > 0 && env.Config.Type == api.EnvCloud {
		return nil, api.Invalid("resources: not supported by this server yet; omit it or send []")
	}
	if len(in.Resources) > 0 {
		return nil, api.Invalid("Environment %s is a self-hosted environment. `resources` are not supported with self-hosted environments.", env.ID)
	}
	return env, nil
}

func sessionAgent(tx *store.Tx, ref api.AgentRef) (api.SessionAgent, error) {
	version := int64(0)
	if ref.Version != nil {
		version = *ref.Version
	}
	newest, err := tx.Agent(ref.ID)
	if err != nil {
		return api.SessionAgent{}, found(err, "agent", string(ref.ID))
	}
	if newest.ArchivedAt != nil {
		return api.SessionAgent{}, api.Invalid("agent %s is archived; new sessions cannot use it", ref.ID)
	}
	a := newest
	if version != 0 && version != newest.Version {
		if a, err = agentAt(tx, ref.ID, version); err != nil {
			return api.SessionAgent{}, err
		}
	}
	snap := a.Snapshot()
	snap.AgentSpec = ref.Apply(snap.AgentSpec)
	if err := snap.Resolve(); err != nil {
		return snap, nested(err, "agent")
	}
	return snap, nil
}

// wake makes the loop look at a session that the transaction has locked.
func wake(tx *store.Tx, s *store.Session) {
	s.WakeAt = &tx.Now
	tx.Notify(topicTurns)
}

// GetSession returns a session.
func (c *Control) GetSession(ctx context.Context, p Principal, id api.SessionID) (*api.Session, error) {
	var out *api.Session
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, id)
		if err != nil {
			return err
		}
		out = public(s, tx.Now)
		return nil
	})
	return out, err
}

// UpdateSession changes a session's title, metadata, budget, or its own copy of
// its agent's tools. Clients see a session.updated event with what changed.
func (c *Control) UpdateSession(ctx context.Context, p Principal, id api.SessionID, in api.SessionUpdate) (*api.Session, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if in.VaultIDs.Set {
		return nil, api.Invalid("vault_ids: not yet supported in an update")
	}
	var out *api.Session
	err := c.write(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.LockSession, p, id)
		if err != nil {
			return err
		}
		if s.Status == api.StatusTerminated {
			return api.Invalid("session %s is terminated and cannot be changed", id)
		}
		changed, err := applySessionUpdate(s, in)
		if err != nil {
			return err
		}
		if changed != nil && changed.Agent != nil {
			env, err := tx.Environment(s.EnvironmentID)
			if err != nil {
				return err
			}
			if err := checkMCPServers(env, s.Agent); err != nil {
				return err
			}
		}
		if changed != nil {
			if _, err := tx.Append(s, []api.Draft{{ID: c.NewEventID(), Body: changed}}); err != nil {
				return err
			}
			s.UpdatedAt = tx.Now
			if changed.Budget.Set {
				wake(tx, s) // work that stood still at the old budget goes on
			}
			tx.Notify(topicSession(id))
			if err := tx.UpdateSession(s); err != nil {
				return err
			}
		}
		out = public(s, tx.Now)
		return nil
	})
	return out, err
}

// applySessionUpdate changes s and returns the event that says what changed, or
// nil if nothing did.
func applySessionUpdate(s *store.Session, in api.SessionUpdate) (*api.SessionUpdated, error) {
	var ev api.SessionUpdated
	any := false
	if in.Title.Set {
		old := s.Title
		setText(&s.Title, in.Title)
		if err := api.CheckTitle(s.Title); err != nil {
			return nil, err
		}
		if !reflect.DeepEqual(old, s.Title) {
			any, ev.Title = true, api.Opt[string]{Set: true, Null: s.Title == nil}
			if s.Title != nil {
				ev.Title.Value = *s.Title
			}
		}
	}
	metadata, metadataChanged := in.Metadata.Apply(s.Metadata)
	if metadataChanged {
		if err := metadata.Check(); err != nil {
			return nil, err
		}
		any, s.Metadata, ev.Metadata = true, metadata, metadata
	}
	if in.Budget.Set {
		changed, err := applyBudget(s, in.Budget)
		if err != nil {
			return nil, err
		}
		if changed {
			any, ev.Budget = true, in.Budget
		}
	}
	if in.Agent.Set && !in.Agent.Null {
		changed, err := applySessionTools(s, in.Agent.Value)
		if err != nil {
			return nil, err
		}
		if changed {
			any, ev.Agent = true, &s.Agent
		}
	}
	if !any {
		return nil, nil
	}
	return &ev, nil
}

func applyBudget(s *store.Session, in api.Opt[api.Budget]) (changed bool, err error) {
	if in.Null {
		changed = s.Budget != nil
		s.Budget = nil
		return changed, nil
	}
	b := in.Value
	if s.Budget == nil {
		return false, api.InvalidCode("budget_create_only", "budget: can only be given when the session is created; this session has none")
	}
	if err := b.Check(); err != nil {
		return false, err
	}
	if b == *s.Budget {
		return false, nil
	}
	if b.Limit() <= s.Cost {
		return false, api.InvalidCode("budget_not_raised", "budget.max_list_cost must be greater than the session's consumed list cost")
	}
	s.Budget = &b
	return true, nil
}

func applySessionTools(s *store.Session, in api.SessionAgentUpdate) (changed bool, err error) {
	if s.Status == api.StatusRunning || s.Status == api.StatusRescheduling {
		return false, api.Invalid("agent: can only be changed while the session is idle")
	}
	next := s.Agent
	if in.Tools.Set {
		next.Tools = in.Tools.Value
	}
	if in.MCPServers.Set {
		next.MCPServers = in.MCPServers.Value
	}
	if err := next.Resolve(); err != nil {
		return false, nested(err, "agent")
	}
	was, _ := json.Marshal(s.Agent)
	is, _ := json.Marshal(next)
	s.Agent = next
	return !bytes.Equal(was, is), nil
}

// ArchiveSession ends a session that is not running; its history stays readable.
// Archiving again changes nothing.
func (c *Control) ArchiveSession(ctx context.Context, p Principal, id api.SessionID) (*api.Session, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	var out *api.Session
	err := c.write(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.LockSession, p, id)
		if err != nil {
			return err
		}
		if s.ArchivedAt == nil {
			if err := c.archive(tx, s); err != nil {
				return err
			}
		}
		out = public(s, tx.Now)
		return nil
	})
	return out, err
}

func (c *Control) archive(tx *store.Tx, s *store.Session) error {
	if err := refuseBusy(tx, s, "archived"); err != nil {
		return err
	}
	if s.Status != api.StatusTerminated {
		_, err := tx.Append(s, []api.Draft{
			{ID: c.NewEventID(), Body: &api.ThreadStatusTerminated{SessionThreadID: s.ThreadID, AgentName: s.Agent.Name}},
			{ID: c.NewEventID(), Body: &api.SessionStatusTerminated{}},
		})
		if err != nil {
			return err
		}
		setStatus(s, api.StatusTerminated, tx.Now)
	}
	s.ArchivedAt, s.UpdatedAt, s.WakeAt = &tx.Now, tx.Now, nil
	s.TurnEpoch++ // whoever still holds the turn writes no more
	tx.Notify(topicSession(s.ID))
	tx.Notify(topicInterrupt(s.ID))
	if err := tx.UpdateSession(s); err != nil {
		return err
	}
	w, err := tx.LockLiveWork(s.ID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// The worker learns it from the event stream or at its next heartbeat.
	return c.requestStop(tx, w)
}

// refuseBusy refuses a session that is at work, or will be as soon as a turn takes
// the message that waits.
func refuseBusy(tx *store.Tx, s *store.Session, what string) error {
	waits, err := tx.Waiting(s.ID, api.EvUserMessage)
	if err != nil {
		return err
	}
	if waits || s.Status == api.StatusRunning || s.Status == api.StatusRescheduling {
		return api.Invalid("session %s cannot be %s while running; send a user.interrupt and wait for it to be idle", s.ID, what)
	}
	return nil
}

// DeleteSession removes a session that is not running, with its events. Open
// streams get session.deleted and end.
func (c *Control) DeleteSession(ctx context.Context, p Principal, id api.SessionID) (api.Deleted, error) {
	if err := p.admin(); err != nil {
		return api.Deleted{}, err
	}
	err := c.write(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.LockSession, p, id)
		if err != nil {
			return err
		}
		if err := refuseBusy(tx, s, "deleted"); err != nil {
			return err
		}
		tx.Notify(topicSession(id))
		tx.Notify(topicInterrupt(id))
		return tx.DeleteSession(id)
	})
	return api.Deleted{ID: string(id), Type: "session_deleted"}, err
}

// ListSessions lists sessions by creation, by default the newest first. It is the
// one list that can also be walked backwards.
func (c *Control) ListSessions(ctx context.Context, p Principal, f api.SessionFilter, req api.PageRequest) (api.SessionPage, error) {
	out := api.SessionPage{Data: []*api.Session{}}
	if err := p.admin(); err != nil {
		return out, err
	}
	if f.Order == "" {
		f.Order = api.Descending
	}
	if f.AgentVersion != 0 && f.AgentID == "" {
		return out, api.Invalid("agent_version: only together with agent_id")
	}
	if f.DeploymentID != "" || f.MemoryStoreID != "" {
		return out, nil // neither exists on this server, so no session has one
	}
	win, err := window(req, f.Order, api.SessionsPageDefault, api.SessionsPageMax)
	if err != nil {
		return out, err
	}
	back := win.After != nil && win.After.Back
	if win.After != nil && !f.Created.Contains(time.UnixMicro(win.After.Key)) {
		return out, api.Invalid("page: the created_at filter leaves out the place of this cursor; start again without `page`")
	}
	if back {
		win.Order = reversed(win.Order)
	}
	err = c.db.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Sessions(f, win)
		if err != nil {
			return err
		}
		more := len(rows) == win.Limit
		if more {
			rows = rows[:win.Limit-1]
		}
		if back {
			slices.Reverse(rows)
		}
		for _, s := range rows {
			out.Data = append(out.Data, public(s, tx.Now))
		}
		if len(rows) == 0 {
			return nil
		}
		at := func(s *store.Session, back bool) *string {
			cur := api.Cursor{Order: f.Order, Key: s.CreatedAt.UnixMicro(), ID: string(s.ID), Back: back}.Encode()
			return &cur
		}
		if back || more {
			out.NextPage = at(rows[len(rows)-1], false)
		}
		if back && more || !back && win.After != nil {
			out.PrevPage = at(rows[0], true)
		}
		return nil
	})
	return out, err
}

func reversed(o api.Order) api.Order {
	if o == api.Ascending {
		return api.Descending
	}
	return api.Ascending
}

// -- threads ----------------------------------------------------------------------

// primary is a session's only thread, derived from the session itself.
func primary(s *store.Session, now time.Time) *api.Thread {
	t := &api.Thread{
		ID: s.ThreadID, Type: "session_thread", SessionID: s.ID, Agent: s.Agent, Status: s.Status,
		CreatedAt: s.CreatedAt, UpdatedAt: s.UpdatedAt, ArchivedAt: s.ArchivedAt,
	}
	if s.LastSeq > 0 {
		full := public(s, now)
		t.Stats = &api.ThreadStats{ActiveSeconds: full.Stats.ActiveSeconds, DurationSeconds: full.Stats.DurationSeconds}
		t.Usage = &full.Usage
	}
	return t
}

// ListThreads lists a session's threads. There is one page.
func (c *Control) ListThreads(ctx context.Context, p Principal, id api.SessionID, statuses []api.SessionStatus, req api.PageRequest) (api.Page[*api.Thread], error) {
	page := api.Page[*api.Thread]{Data: []*api.Thread{}}
	if _, err := window(req, api.Ascending, api.ThreadsPageDefault, api.ThreadsPageDefault); err != nil {
		return page, err
	}
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, id)
		if err != nil {
			return err
		}
		if len(statuses) == 0 || slices.Contains(statuses, s.Status) {
			page.Data = append(page.Data, primary(s, tx.Now))
		}
		return nil
	})
	return page, err
}

// GetThread returns a thread of a session.
func (c *Control) GetThread(ctx context.Context, p Principal, id api.SessionID, thread api.ThreadID) (*api.Thread, error) {
	var out *api.Thread
	err := c.db.Read(ctx, func(tx *store.Tx) error {
		s, err := c.visible(tx.Session, p, id)
		if err != nil {
			return err
		}
		if s.ThreadID != thread {
			return api.NotFound("thread %s was not found", thread)
		}
		out = primary(s, tx.Now)
		return nil
	})
	return out, err
}

// ArchiveThread refuses: the primary thread ends with its session.
func (c *Control) ArchiveThread(ctx context.Context, p Principal, id api.SessionID, thread api.ThreadID) (*api.Thread, error) {
	if err := p.admin(); err != nil {
		return nil, err
	}
	if _, err := c.GetThread(ctx, p, id, thread); err != nil {
		return nil, err
	}
	return nil, api.Invalid("thread %s is the primary thread; archive the session instead", thread)
}
