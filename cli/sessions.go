package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/client"
)

func (p *Program) sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "sessions",
		Aliases: []string{"session"},
		Short:   "Start sessions, talk to them, watch them work",
		Long: `A session is one run of an agent in an environment: its messages, tool calls
and answers, kept as events.`,
		Example: `  bailey sessions create --agent agent_… --environment env_… --message "What is in this folder?" --follow
  bailey sessions send sesn_… "And the largest file?" --follow`,
	}
	c := p.connectFlags(cmd)
	cmd.AddCommand(
		p.sessionsCreate(c), p.sessionsGet(c), p.sessionsList(c), p.sessionsUpdate(c), p.sessionsArchive(c), p.sessionsDelete(c),
		p.sessionsSend(c), p.sessionsFollow(c), p.sessionsEvents(c), p.sessionsConfirm(c), p.sessionsDeny(c), p.sessionsInterrupt(c), p.sessionsShell(c),
	)
	return cmd
}

func (p *Program) sessionsCreate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Start a session",
		Long: `Starts a session from flags, a file, or both. With --message the agent begins to
work at once.`,
		Example: `  bailey sessions create --agent agent_… --environment env_… --message "Tidy up the notes." --follow
  bailey sessions create --agent agent_…@2 --environment env_… --budget 0.50
  bailey sessions create --file session.yaml -o json | jq -r .id`,
	}
	f := cmd.Flags()
	agent := f.String("agent", "", "the agent's `id`, or id@version")
	f.String("environment", "", "the environment's `id`")
	f.String("title", "", "a title for people")
	message := f.StringP("message", "m", "", "the first message; @FILE reads it from a file")
	budget := f.String("budget", "", "stop at this many `dollars` at list price, such as 0.50")
	vaults := f.StringArray("vault", nil, "the `id` of a vault whose credentials the session may use; may be repeated, and the first with one wins")
	metadata := f.StringArray("metadata", nil, metadataUsage)
	follow := f.Bool("follow", false, "show what happens until the turn is done")
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		var in api.SessionCreate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		if *agent != "" {
			ref, err := agentRef(*agent)
			if err != nil {
				return err
			}
			in.Agent = ref
		}
		if f.Changed("environment") {
			in.EnvironmentID = api.EnvironmentID(f.Lookup("environment").Value.String())
		}
		setOptional(cmd, "title", &in.Title)
		if *budget != "" {
			b, err := budgetOf(*budget)
			if err != nil {
				return err
			}
			in.Budget = b
		}
		if f.Changed("vault") {
			in.VaultIDs = nil
			for _, id := range *vaults {
				in.VaultIDs = append(in.VaultIDs, api.VaultID(id))
			}
		}
		if f.Changed("metadata") {
			m, err := metadataOf(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = m
		}
		if err := fileText(message); err != nil {
			return err
		}
		if *message != "" {
			raw, err := client.ClientEvent(&api.UserMessage{Content: api.Content{api.TextBlock(*message)}})
			if err != nil {
				return err
			}
			in.InitialEvents = append(in.InitialEvents, raw)
		}
		switch {
		case in.Agent.ID == "" || in.EnvironmentID == "":
			return usageError(cmd, fmt.Errorf("a session needs --agent and --environment"))
		case *follow && len(in.InitialEvents) == 0:
			return usageError(cmd, fmt.Errorf("--follow needs a --message: without one nothing happens yet"))
		}
		s, err := cl.CreateSession(ctx, in)
		if err != nil {
			return err
		}
		if !*follow {
			return p.printSession(*out, s)
		}
		fmt.Fprintf(p.Stderr, "session %s\n", s.ID)
		p.hintWorkers(ctx, cl, s.EnvironmentID)
		return p.follow(ctx, cl, followRequest{session: s.ID, json: *out == outJSON, until: &turnEnd{}})
	})
	return cmd
}

// hintWorkers says when no worker asks for the work of an environment: then nothing
// will happen beyond what the model says. That it cannot be found out is no matter.
func (p *Program) hintWorkers(ctx context.Context, cl *client.Client, id api.EnvironmentID) {
	stats, err := cl.WorkStats(ctx, id)
	if err != nil || stats.WorkersPolling > 0 {
		return
	}
	env, err := cl.GetEnvironment(ctx, id)
	if err != nil || env.Config.Type != api.EnvSelfHosted {
		return
	}
	fmt.Fprintf(p.Stderr, "no worker asks for the work of %s just now: tools wait until one runs (bailey worker --environment-id %s)\n", id, id)
}

// hintWorkersOf does so for the environment of a session.
func (p *Program) hintWorkersOf(ctx context.Context, cl *client.Client, id api.SessionID) {
	if s, err := cl.GetSession(ctx, id); err == nil {
		p.hintWorkers(ctx, cl, s.EnvironmentID)
	}
}

// agentRef reads id or id@version.
func agentRef(text string) (api.AgentRef, error) {
	id, version, pinned := strings.Cut(text, "@")
	ref := api.AgentRef{Type: "agent", ID: api.AgentID(id)}
	if pinned {
		n, err := strconv.ParseInt(version, 10, 64)
		if err != nil || n < 1 {
			return ref, usagef("--agent %q: the version after @ is not a number from 1", text)
		}
		ref.Version = &n
	}
	return ref, nil
}

func (p *Program) sessionsGet(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get SESSION",
		Short: "Show a session",
		Example: `  bailey sessions get sesn_…
  bailey sessions get sesn_… -o json | jq .usage`,
		Args: cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		s, err := cl.GetSession(ctx, api.SessionID(args[0]))
		if err != nil {
			return err
		}
		if *out == outTable && s.Status == api.StatusIdle {
			waits, err := waitsFor(ctx, cl, s.ID)
			if err != nil {
				return err
			}
			return p.printSessionAs(*out, s, "idle"+waits)
		}
		return p.printSession(*out, s)
	})
	return cmd
}

// waitsFor says what an idle session waits for, to stand after that word; "" if its
// turn is done.
func waitsFor(ctx context.Context, cl *client.Client, id api.SessionID) (string, error) {
	newest := func(t api.EventType, limit int) ([]*client.Frame, error) {
		return take(cl.Events(ctx, id, client.EventOptions{
			ListOptions: client.ListOptions{PageSize: min(limit, pageSize)},
			Filter:      api.EventFilter{Types: []api.EventType{t}, Order: api.Descending},
		}), limit)
	}
	idle, err := newest(api.EvSessionStatusIdle, 1)
	if err != nil || len(idle) == 0 {
		return "", err
	}
	e, err := idle[0].Event()
	if err != nil {
		return "", err
	}
	reason := e.Body.(*api.SessionStatusIdle).StopReason
	if reason.Type != api.StopRequiresAction {
		return "", nil
	}
	confirmed := map[api.EventID]bool{}
	frames, err := newest(api.EvUserToolConfirmation, pageSize)
	for _, f := range frames {
		if e, err := f.Event(); err == nil {
			confirmed[e.Body.(*api.UserToolConfirmation).ToolUseID] = true
		}
	}
	if err != nil {
		return "", err
	}
	ask, custom := 0, 0
	for _, kind := range []api.EventType{api.EvAgentToolUse, api.EvAgentMCPToolUse, api.EvAgentCustomToolUse} {
		frames, err := newest(kind, 256)
		if err != nil {
			return "", err
		}
		for _, f := range frames {
			e, err := f.Event()
			if err != nil || !slices.Contains(reason.EventIDs, e.ID) {
				continue
			}
			permission := api.PermissionAllow
			switch b := e.Body.(type) {
			case *api.AgentToolUse:
				permission = b.EvaluatedPermission
			case *api.AgentMCPToolUse:
				permission = b.EvaluatedPermission
			default:
				custom++
			}
			if permission == api.PermissionAsk && !confirmed[e.ID] {
				ask++
			}
		}
	}
	switch {
	case ask > 0:
		return fmt.Sprintf(", waits for you to allow %s (bailey sessions follow %s shows which)", count(ask, "call"), id), nil
	case custom > 0:
		return fmt.Sprintf(", waits for the client to run %s", count(custom, "call")), nil
	}
	return ", waits for a worker's results", nil
}

func count(n int, what string) string {
	switch stem, y := strings.CutSuffix(what, "ry"); {
	case n == 1:
		return "1 " + what
	case y:
		return fmt.Sprintf("%d %sries", n, stem)
	case strings.HasSuffix(what, "s"), strings.HasSuffix(what, "x"):
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (p *Program) sessionsList(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List sessions, the newest first",
		Example: `  bailey sessions list --status running
  bailey sessions list --agent agent_… -o json | jq -r '.[].id'`,
	}
	agent := cmd.Flags().String("agent", "", "only those of the agent with this `id`")
	status := cmd.Flags().StringSlice("status", nil, "only those in these `states`: running, idle, rescheduling, terminated")
	l := addListFlags(cmd, true)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, _ []string) error {
		filter := api.SessionFilter{AgentID: api.AgentID(*agent)}
		for _, s := range *status {
			filter.Statuses = append(filter.Statuses, api.SessionStatus(s))
		}
		return printList(p, l, cl.Sessions(ctx, filter, l.options()),
			[]string{"ID", "STATUS", "AGENT", "TITLE", "COST", "CREATED"},
			func(s *api.Session) []string {
				status := string(s.Status)
				if s.ArchivedAt != nil {
					status = "archived"
				}
				return []string{string(s.ID), status, s.Agent.Name, deref(s.Title), costText(s.Usage), when(s.CreatedAt)}
			})
	})
	return cmd
}

func (p *Program) sessionsUpdate(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "update SESSION",
		Short: "Change a session's title, metadata or budget",
		Long: `Changes what is given and leaves the rest as it is. An empty title clears it;
--metadata key= removes a key. Raising the budget lets a session go on that has
reached it.`,
		Example: `  bailey sessions update sesn_… --title "Quarterly report"
  bailey sessions update sesn_… --budget 5`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.String("title", "", "a title for people")
	budget := f.String("budget", "", "stop at this many `dollars` at list price; none removes the limit")
	metadata := f.StringArray("metadata", nil, metadataUsage)
	file, out := fileFlag(cmd), outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if *file == "" && !changed(cmd, "title", "budget", "metadata") {
			return nothingToDo(cmd)
		}
		var in api.SessionUpdate
		if err := p.readObject(*file, &in); err != nil {
			return err
		}
		setPatch(cmd, "title", &in.Title)
		switch *budget {
		case "":
		case "none":
			in.Budget = api.Opt[api.Budget]{Set: true, Null: true}
		default:
			b, err := budgetOf(*budget)
			if err != nil {
				return err
			}
			in.Budget = api.Some(*b)
		}
		if f.Changed("metadata") {
			patch, err := metadataPatch(*metadata)
			if err != nil {
				return err
			}
			in.Metadata = patch
		}
		s, err := cl.UpdateSession(ctx, api.SessionID(args[0]), in)
		if err != nil {
			return err
		}
		return p.printSession(*out, s)
	})
	return cmd
}

func (p *Program) sessionsArchive(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "archive SESSION",
		Short:   "End a session for good and keep its events",
		Example: `  bailey sessions archive sesn_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		s, err := cl.ArchiveSession(ctx, api.SessionID(args[0]))
		if err != nil {
			return err
		}
		return p.printSession(*out, s)
	})
	return cmd
}

func (p *Program) sessionsDelete(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete SESSION",
		Short:   "Delete a session and its events",
		Example: `  bailey sessions delete sesn_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if err := cl.DeleteSession(ctx, api.SessionID(args[0])); err != nil {
			return err
		}
		return p.printDeleted(*out, api.Deleted{ID: args[0], Type: "session_deleted"})
	})
	return cmd
}

func (p *Program) printSession(out string, s *api.Session) error {
	return p.printSessionAs(out, s, string(s.Status))
}

// printSessionAs is printSession with more to say of the status.
func (p *Program) printSessionAs(out string, s *api.Session, status string) error {
	budget := ""
	if s.Budget != nil {
		budget = dollars(s.Budget.MaxListCost)
	}
	var vaults []string
	for _, id := range s.VaultIDs {
		vaults = append(vaults, string(id))
	}
	u := s.Usage.Tokens
	return p.printObject(out, s,
		field{"id", string(s.ID)},
		field{"title", deref(s.Title)},
		field{"status", status},
		field{"agent", fmt.Sprintf("%s (%s, version %d)", s.Agent.Name, s.Agent.ID, s.Agent.Version)},
		field{"model", s.Agent.Model.ID},
		field{"environment", string(s.EnvironmentID)},
		field{"vaults", strings.Join(vaults, "\n")},
		field{"tokens", fmt.Sprintf("%s in, %s out", thousands(u.Input+u.CacheRead+u.CacheCreate5m+u.CacheCreate1h), thousands(u.Output))},
		field{"cost", costText(s.Usage)},
		field{"budget", budget},
		field{"metadata", metadataText(s.Metadata)},
		field{"created", when(s.CreatedAt)},
		field{"updated", when(s.UpdatedAt)},
		field{"archived", whenPtr(s.ArchivedAt)},
	)
}

func costText(u api.Usage) string {
	if u.ListCost == nil {
		return ""
	}
	return dollars(u.ListCost.Money())
}

func (p *Program) sessionsSend(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "send SESSION TEXT",
		Short: "Send a message to a session",
		Long: `Sends a message. It is taken up at once, or when the agent next pauses. TEXT may
be @FILE, or - for standard input.`,
		Example: `  bailey sessions send sesn_… "Now add tests." --follow
  git diff | bailey sessions send sesn_… -`,
		Args: cobra.ExactArgs(2),
	}
	follow := cmd.Flags().Bool("follow", false, "show what happens until the turn is done")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		text := args[1]
		if text == "-" {
			data, err := p.readInput("-")
			if err != nil {
				return err
			}
			text = string(data)
		} else if err := fileText(&text); err != nil {
			return err
		}
		if strings.TrimSpace(text) == "" {
			return usagef("the message is empty")
		}
		id := api.SessionID(args[0])
		sent, err := cl.Send(ctx, id, &api.UserMessage{Content: api.Content{api.TextBlock(text)}})
		if err != nil {
			return err
		}
		if !*follow {
			return p.printSent(*out, id, sent)
		}
		p.hintWorkersOf(ctx, cl, id)
		return p.follow(ctx, cl, followRequest{
			session: id, json: *out == outJSON, since: sent[0].ID, until: &turnEnd{mark: sent[0].ID, fresh: true},
		})
	})
	return cmd
}

func (p *Program) printSent(out string, id api.SessionID, sent []*api.Event) error {
	if out == outJSON {
		return printJSON(p.Stdout, sent)
	}
	for _, e := range sent {
		if _, err := fmt.Fprintf(p.Stdout, "sent %s %s\n", e.Type(), e.ID); err != nil {
			return err
		}
	}
	fmt.Fprintf(p.Stderr, "watch it: bailey sessions follow %s\n", id)
	return nil
}

func (p *Program) sessionsFollow(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "follow SESSION",
		Short: "Show a session as it happens",
		Long: `Shows what happened in a session so far and then what happens, until you
interrupt it. On a terminal, answers appear as the model writes them. With
-o json every event is a line of JSON, as the API has it.`,
		Example: `  bailey sessions follow sesn_…
  bailey sessions follow sesn_… --until-idle -o json | jq -r .type`,
		Args: cobra.ExactArgs(1),
	}
	onlyNew := cmd.Flags().Bool("new", false, "leave out what happened so far")
	untilIdle := cmd.Flags().Bool("until-idle", false, "stop when the turn is done")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		id := api.SessionID(args[0])
		r := followRequest{session: id, json: *out == outJSON, onlyNew: *onlyNew}
		if *untilIdle {
			r.until = &turnEnd{}
			if !*onlyNew {
				// The rests of earlier turns are history.
				mark, err := newest(ctx, cl, id)
				if err != nil {
					return err
				}
				r.until.mark = mark
			}
		}
		p.hintWorkersOf(ctx, cl, id)
		return p.follow(ctx, cl, r)
	})
	return cmd
}

func (p *Program) sessionsEvents(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events SESSION",
		Short: "List what happened in a session",
		Long: `Lists the events of a session, the oldest first: a timeline, or with -o json an
array of events as the API has them.`,
		Example: `  bailey sessions events sesn_…
  bailey sessions events sesn_… --type agent.tool_use -o json | jq '.[].input'`,
		Args: cobra.ExactArgs(1),
	}
	types := cmd.Flags().StringSlice("type", nil, "only events of these `types`, such as agent.message")
	limit := cmd.Flags().IntP("limit", "n", 0, "how many to show at most; 0 is all")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		var o client.EventOptions
		for _, t := range *types {
			if !api.KnownEventType(api.EventType(t)) {
				return usagef("--type: there is no event type %q", t)
			}
			o.Filter.Types = append(o.Filter.Types, api.EventType(t))
		}
		return p.listEvents(ctx, cl, api.SessionID(args[0]), o, *limit, *out)
	})
	return cmd
}

func (p *Program) listEvents(ctx context.Context, cl *client.Client, id api.SessionID, o client.EventOptions, limit int, out string) error {
	if out == outJSON {
		frames, err := take(cl.Events(ctx, id, o), limit)
		if err != nil {
			return err
		}
		events := make([]json.RawMessage, len(frames))
		for i, f := range frames {
			events[i] = f.Data
		}
		return printJSON(p.Stdout, events)
	}
	t := p.timeline(id)
	n := 0
	for f, err := range cl.Events(ctx, id, o) {
		if err != nil {
			return err
		}
		t.frame(f)
		if n++; n == limit {
			break
		}
	}
	return nil
}

func (p *Program) sessionsConfirm(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm SESSION CALL...",
		Short: "Allow tool calls that wait for you",
		Long: `Allows tool calls of an agent whose permission policy asks. CALL is the id of
the agent.tool_use event; "bailey sessions follow" shows what to type. At a
terminal the calls are shown and you are asked once more, unless --yes is given.`,
		Example: `  bailey sessions confirm sesn_… sevt_…
  bailey sessions confirm sesn_… sevt_… --yes`,
		Args: cobra.MinimumNArgs(2),
	}
	yes := cmd.Flags().BoolP("yes", "y", false, "do not ask")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		if in, ok := p.Stdin.(*os.File); !*yes && ok && term.IsTerminal(int(in.Fd())) && isTerminal(p.Stderr) {
			sure, err := p.sure(ctx, cl, api.SessionID(args[0]), args[1:])
			if err != nil || !sure {
				return err
			}
		}
		return p.decide(ctx, cl, args, api.UserToolConfirmation{Result: "allow"}, *out)
	})
	return cmd
}

func (p *Program) sessionsDeny(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "deny SESSION CALL...",
		Short:   "Refuse tool calls that wait for you",
		Long:    `Refuses tool calls. The agent is told, with your reason, and goes on.`,
		Example: `  bailey sessions deny sesn_… sevt_… --message "not in production"`,
		Args:    cobra.MinimumNArgs(2),
	}
	message := cmd.Flags().StringP("message", "m", "", "the reason, for the agent")
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		decision := api.UserToolConfirmation{Result: "deny"}
		if *message != "" {
			decision.DenyMessage = message
		}
		return p.decide(ctx, cl, args, decision, *out)
	})
	return cmd
}

// sure shows calls and asks whether they may run.
func (p *Program) sure(ctx context.Context, cl *client.Client, id api.SessionID, calls []string) (bool, error) {
	t := newTimeline(p.Stderr, p.styleOf(p.Stderr), true)
	found := 0
	o := client.EventOptions{Filter: api.EventFilter{Types: []api.EventType{api.EvAgentToolUse, api.EvAgentMCPToolUse}, Order: api.Descending}}
	for f, err := range cl.Events(ctx, id, o) {
		if err != nil {
			return false, err
		}
		e, err := f.Event()
		if err != nil || !slices.Contains(calls, string(e.ID)) {
			continue
		}
		t.event(e)
		if found++; found == len(calls) {
			break
		}
	}
	if found < len(calls) {
		return false, usagef("%d of the calls are not in session %s", len(calls)-found, id)
	}
	fmt.Fprint(p.Stderr, "Allow? [y/N] ")
	answer, err := bufio.NewReader(io.LimitReader(p.Stdin, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	fmt.Fprintln(p.Stderr, "nothing was sent")
	return false, nil
}

// decide sends one decision about the calls args[1:] of the session args[0].
func (p *Program) decide(ctx context.Context, cl *client.Client, args []string, decision api.UserToolConfirmation, out string) error {
	var events []api.EventBody
	for _, call := range args[1:] {
		d := decision
		d.ToolUseID = api.EventID(call)
		events = append(events, &d)
	}
	id := api.SessionID(args[0])
	sent, err := cl.Send(ctx, id, events...)
	if err != nil {
		return err
	}
	return p.printSent(out, id, sent)
}

func (p *Program) sessionsInterrupt(c *connection) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "interrupt SESSION",
		Short: "Stop what a session is doing",
		Long: `Cuts the model short and gives up the tool calls under way. The session stays,
and goes on with the next message.`,
		Example: `  bailey sessions interrupt sesn_…`,
		Args:    cobra.ExactArgs(1),
	}
	out := outputFlag(cmd)
	cmd.RunE = c.run(func(ctx context.Context, cl *client.Client, args []string) error {
		id := api.SessionID(args[0])
		sent, err := cl.Send(ctx, id, &api.UserInterrupt{})
		if err != nil {
			return err
		}
		return p.printSent(*out, id, sent)
	})
	return cmd
}
