// Package netjail serves the ways out of one box ([sandbox.Exits]) under the operator's
// policy, from outside the box.
//
// To the box its network looks whole: it asks a name server, connects to what it is told
// and speaks whatever protocol it likes. The name server is ours. It answers for names
// that the policy allows, without asking anybody, with an address that stands for the
// name in this box alone ([FakeRange]); so when the box connects there, on any port and
// by any protocol, we know which host it means. We look that host up ourselves, check
// the very address that is dialled, and pass the bytes on. Whatever the box does within
// its own walls (other resolvers, proxies, no proxies, its own trust store), there is
// nothing else that it could reach.
//
//   - dns.go answers questions, names.go keeps which address stands for which name.
//   - tcp.go takes connections in and decides; splice.go passes them on.
//   - hello.go reads the greeting of TLS, authority.go opens TLS where that is asked for.
//   - http.go judges requests one by one; framing.go refuses those that two programs
//     could read as different ones.
//   - credential.go puts secrets in where they belong, redact.go takes them out of what
//     comes back.
//   - audit.go tells of every decision before it takes effect.
//
// What it cannot do: a tls rule lets the box talk to whoever serves the host at the
// host's own address, and who shares that server is only seen where TLS is opened
// (protocol https). A secret that a host gives back in disguise (reversed, encrypted) is
// not recognised.
//
// The package knows the policy engine (egress) and the exits (sandbox), and nothing of
// sessions, backends or control planes. Start reading at [New], then [Jail.Attach].
package netjail

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/sandbox"
)

// Options are what a Jail is made of.
type Options struct {
	// Box names the box in decisions.
	Box string

	// Policy is what the box may reach at first; see [Jail.SetPolicy].
	Policy egress.Policy

	// Credentials are at most [CredentialsMax]; see [Jail.SetCredentials].
	Credentials []Credential

	// Authority asks for an authority that can open TLS even if neither the policy nor
	// a credential needs one yet, so that they may later.
	Authority bool

	// Record is told of every decision before it takes effect. If it returns an error,
	// what was allowed is refused: a box whose decisions cannot be recorded reaches
	// nothing. It is called by several goroutines. Required.
	Record func(Decision) error

	// Dialer makes the connections. Nil means a plain one; several jails may share one.
	Dialer *egress.Dialer

	// Roots are what servers' certificates are verified against where TLS is opened.
	// Nil means the system's.
	Roots *x509.CertPool

	// State is what another jail's [Jail.State] returned, for a box that continues from
	// that one's checkpoint.
	State []byte

	Limits Limits

	// Memory is what this jail shares with others of the process. Nil is one of its own.
	Memory *Memory

	// Log gets what is of interest beside the decisions. Nil discards it.
	Log *slog.Logger

	// Original finds where a connection at the exits was meant to go. Nil asks the
	// kernel, which knows if it was redirected.
	Original func(*net.TCPConn) (netip.AddrPort, error)
}

// Limits bound what one box can use of its jail. Zero fields have the defaults.
type Limits struct {
	Connections int           // open at a time; default 512. More are reset
	Requests    int           // under way, where they are judged one by one; default 256. More are answered 503
	Names       int           // names asked for in the box's life; default 4096. More are refused
	Queries     int           // questions to the name server a second, four times that in a burst; default 100. More are dropped
	Greeting    time.Duration // for a box to say what it wants on a connection that is looked into; default 10 s
	Idle        time.Duration // a connection on which nothing is sent is cut after it; default 30 min
	Total       time.Duration // any connection is cut after it; default 24 h
}

func (l Limits) defaults() Limits {
	set(&l.Connections, 512)
	set(&l.Requests, 256)
	set(&l.Names, 4096)
	set(&l.Queries, 100)
	set(&l.Greeting, 10*time.Second)
	set(&l.Idle, 30*time.Minute)
	set(&l.Total, 24*time.Hour)
	l.Names = min(l.Names, fakeMax)
	return l
}

func set[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// A Jail is the network of one box. Its methods are safe for concurrent use.
type Jail struct {
	// Static after New.
	box       string
	record    func(Decision) error
	limits    Limits
	log       *slog.Logger
	original  func(*net.TCPConn) (netip.AddrPort, error)
	roots     *x509.CertPool
	authority *authority // nil if none was asked for
	slots     chan struct{}
	requests  chan struct{} // one in it for each that is under way
	memory    *Memory       // for what this jail gathers
	shared    *Memory       // for what all that share it do
	queries   *rate.Limiter
	server    *http.Server // of the connections whose requests are judged
	guests    *queue       // those connections, for the server
	names     *names
	secrets   *secrets
	counters  counters

	ctx  context.Context // ends when the jail serves no more
	stop context.CancelFunc
	done chan struct{} // closed when nothing of the jail runs

	state  atomic.Pointer[state]
	dialer atomic.Pointer[egress.Dialer]

	// changing is held while policy or credentials change, so that each change is
	// recorded, takes hold and has cut what it cuts before the next.
	changing sync.Mutex

	mu       sync.Mutex
	attached bool
	err      error
	session  string
	call     string
	grants   map[*grant]struct{}
	answered map[string]bool // names whose verdict this call's record has
	warned   map[string]time.Time
	denials  denials
}

// A state is what holds for the box at a time.
type state struct {
	rules       *egress.Rules
	credentials []*credential
}

// A grant is something that the policy allowed and that goes on: a connection, or a
// request on one.
type grant struct {
	link  *link             // the connection, if it is one
	holds func(*state) bool // whether it is still allowed
	cut   func(why string)  // ends it; must not block
}

// New makes the jail of a box that is about to be started. The caller closes it.
func New(o Options) (*Jail, error) {
	if o.Record == nil {
		return nil, errors.New("netjail: Options.Record is required: a box whose decisions are not recorded reaches nothing")
	}
	rules, err := o.Policy.Compile()
	if err != nil {
		return nil, err
	}
	was, err := decodeState(o.State)
	if err != nil {
		return nil, err
	}
	limits := o.Limits.defaults()
	names, err := newNames(limits.Names, was.Names)
	if err != nil {
		return nil, fmt.Errorf("state of a jail: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	j := &Jail{
		box:      o.Box,
		record:   o.Record,
		limits:   limits,
		log:      o.Log,
		original: o.Original,
		roots:    o.Roots,
		slots:    make(chan struct{}, limits.Connections),
		requests: make(chan struct{}, limits.Requests),
		memory:   &Memory{left: boxGathers},
		shared:   o.Memory,
		queries:  rate.NewLimiter(rate.Limit(limits.Queries), 4*limits.Queries),
		names:    names,
		secrets:  newSecrets(was.Placeholders),
		ctx:      ctx,
		stop:     stop,
		done:     make(chan struct{}),
		grants:   make(map[*grant]struct{}),
		answered: make(map[string]bool),
		warned:   make(map[string]time.Time),
	}
	if j.shared == nil {
		j.shared = NewMemory()
	}
	if j.dialer.Store(o.Dialer); o.Dialer == nil {
		j.dialer.Store(new(egress.Dialer))
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	if j.original == nil {
		j.original = sandbox.Destination
	}
	credentials, err := j.bind(o.Credentials)
	if err != nil {
		stop()
		return nil, err
	}
	if was.Authority != nil || o.Authority || rules.OpensTLS() || len(credentials) > 0 {
		if j.authority, err = newAuthority(o.Box, was.Authority); err != nil {
			stop()
			return nil, err
		}
	}
	j.state.Store(&state{rules, credentials})
	j.guests = newQueue(ctx)
	j.server = j.newServer()
	return j, nil
}

// Attach takes over the ways out of the box and serves them until they are closed, which
// the backend does at the box's end, or the jail is. It can be called once.
func (j *Jail) Attach(exits sandbox.Exits) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case exits.TCP == nil || exits.DNS == nil:
		return errors.New("netjail: the box has no exits to serve")
	case j.ctx.Err() != nil:
		return errors.New("netjail: the jail is closed")
	case j.attached:
		return errors.New("netjail: the jail has a box already")
	}
	j.attached = true
	go j.run(exits)
	return nil
}

// run serves the exits. Whatever part of it ends first ends all.
func (j *Jail) run(exits sandbox.Exits) {
	defer close(j.done)
	var parts, connections sync.WaitGroup
	part := func(serve func() error) {
		parts.Go(func() {
			defer j.stop()
			defer j.recovered()
			if err := serve(); err != nil {
				j.lose(err)
			}
		})
	}
	part(func() error { return j.acceptAll(exits.TCP, &connections) })
	part(func() error { return j.answerAll(exits.DNS) })
	part(func() error { return j.server.Serve(j.guests) })
	part(j.watch)

	<-j.ctx.Done()
	// The exits are the backend's to close. A deadline in the past ends our waiting.
	past := time.Unix(1, 0)
	if err := errors.Join(exits.TCP.SetDeadline(past), exits.DNS.SetDeadline(past)); err != nil && !errors.Is(err, net.ErrClosed) {
		j.log.Warn("the exits of a box do not let go", "box", j.box, "error", err)
	}
	j.server.Close()
	parts.Wait()
	j.cut(func(*grant) bool { return true }, "cut with the box's network")
	connections.Wait()
}

// recovered makes the loss of the jail of a panic, so that the box is stopped and no
// other box is.
func (j *Jail) recovered() {
	if p := recover(); p != nil {
		j.lose(fmt.Errorf("panic: %v", p))
		j.log.Error("the network of a box failed", "box", j.box, "panic", p, "stack", stack())
	}
}

// lose ends the jail for a reason.
func (j *Jail) lose(err error) {
	j.mark(err)
	j.stop()
}

// mark keeps the first reason for the end of a jail that still serves.
func (j *Jail) mark(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil && j.ctx.Err() == nil {
		j.err = fmt.Errorf("the network of box %s failed: %w", j.box, err)
	}
}

// Done is closed when the jail serves the box no more and nothing of it runs. Whoever has
// the box must stop it then.
func (j *Jail) Done() <-chan struct{} { return j.done }

// Err says, once Done is closed, why: nil if the jail was closed or the box's exits were.
func (j *Jail) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Fail ends the jail for a reason that [Jail.Err] tells: whoever has the box stops it. It
// is for a box that may not go on under what holds for it.
func (j *Jail) Fail(err error) {
	j.mark(err)
	_ = j.Close() // which has no error
}

// Close stops serving, cuts every connection and waits until that is done. The exits stay
// open: they are the backend's.
func (j *Jail) Close() error {
	j.mu.Lock()
	attached := j.attached
	if !attached && j.ctx.Err() == nil {
		close(j.done)
	}
	j.stop()
	j.mu.Unlock()
	<-j.done
	return nil
}

// SetCall says whose box it is and which call runs in it, for the decisions from here on.
func (j *Jail) SetCall(session, call string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.session != session || j.call != call {
		clear(j.answered)
	}
	j.session, j.call = session, call
}

// ErrNoAuthority is the error of a change after which TLS would have to be opened, in a
// box that was started without an authority that its programs trust.
var ErrNoAuthority = errors.New("the box was started without an authority for opening TLS, and its programs would trust none now: start a new box, with Options.Authority or with the policy or credential from the start")

// SetPolicy changes what the box may reach, at once: connections and requests that the
// new policy does not allow are cut before it returns. With [ErrNoAuthority] the new
// policy holds, and connections whose TLS it would have opened are refused; on any other
// error the policy stays what it was.
func (j *Jail) SetPolicy(policy egress.Policy) error {
	rules, err := policy.Compile()
	if err != nil {
		return err
	}
	j.changing.Lock()
	defer j.changing.Unlock()
	was := j.state.Load()
	d := j.decision(ActionPolicy)
	d.Allow, d.Policy, d.Reason = true, rules.Hash(), "was "+was.rules.Hash()
	if err := j.note(d); err != nil {
		return err
	}
	j.change(&state{rules, was.credentials})
	if rules.OpensTLS() && j.authority == nil {
		return ErrNoAuthority
	}
	return nil
}

// SetCredentials changes the credentials of the box, at once: connections that were
// passed on unopened and would be opened now are cut. A credential keeps its placeholder
// as long as it keeps its name. On error they stay what they were.
func (j *Jail) SetCredentials(list []Credential) error {
	j.changing.Lock()
	defer j.changing.Unlock()
	if len(list) > 0 && j.authority == nil {
		return ErrNoAuthority
	}
	credentials, err := j.bind(list)
	if err != nil {
		return err
	}
	d := j.decision(ActionPolicy)
	d.Allow, d.Reason = true, fmt.Sprintf("%d credentials are bound", len(credentials))
	if err := j.note(d); err != nil {
		return err
	}
	j.change(&state{j.state.Load().rules, credentials})
	return nil
}

// SetDialer has connections made by another dialer from here on. Those that the one
// before has made are cut.
func (j *Jail) SetDialer(d *egress.Dialer) {
	j.changing.Lock()
	defer j.changing.Unlock()
	j.dialer.Store(d)
	j.cut(func(g *grant) bool { return g.link != nil }, "cut by a change of proxy")
}

// change makes s hold. The caller holds changing.
func (j *Jail) change(s *state) {
	j.mu.Lock()
	j.state.Store(s)
	clear(j.answered)
	j.mu.Unlock()
	// Whatever is admitted after this is judged by s: see admit.
	if n := j.cut(func(g *grant) bool { return !g.holds(s) }, "cut by a change of policy"); n > 0 {
		j.log.Info("connections were cut, as they are allowed no more", "box", j.box, "count", n)
	}
}

// admit registers g so that a change of policy cuts it, and reports whether it is allowed
// by what holds now, which may not be what it was judged by. The caller releases it.
func (j *Jail) admit(g *grant) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ctx.Err() != nil {
		return false
	}
	j.grants[g] = struct{}{}
	return g.holds(j.state.Load())
}

func (j *Jail) release(g *grant) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.grants, g)
}

// links are the connections that are admitted.
func (j *Jail) links() []*link {
	j.mu.Lock()
	defer j.mu.Unlock()
	var links []*link
	for g := range j.grants {
		if g.link != nil {
			links = append(links, g.link)
		}
	}
	return links
}

// cut ends the grants that which picks, and returns how many.
func (j *Jail) cut(which func(*grant) bool, why string) int {
	j.mu.Lock()
	var picked []*grant
	for g := range j.grants {
		if which(g) {
			picked = append(picked, g)
		}
	}
	j.mu.Unlock()
	for _, g := range picked {
		g.cut(why)
	}
	return len(picked)
}

// counters count since the jail was made.
type counters struct {
	open, accepted, denied, queries, requests, credentials, sent, received atomic.Int64
}

// Stats are what a box has used of its network.
type Stats struct {
	Open        int   // connections now
	Connections int64 // accepted, allowed or not
	Denied      int64 // decisions that refused something
	Queries     int64 // questions to the name server
	Requests    int64 // HTTP requests that were judged one by one
	Credentials int64 // uses of credentials
	Sent        int64 // bytes from the box that were passed on, of connections that have ended
	Received    int64 // bytes to the box, likewise
}

// Stats returns the counters.
func (j *Jail) Stats() Stats {
	c := &j.counters
	return Stats{
		Open: int(c.open.Load()), Connections: c.accepted.Load(), Denied: c.denied.Load(), Queries: c.queries.Load(),
		Requests: c.requests.Load(), Credentials: c.credentials.Load(), Sent: c.sent.Load(), Received: c.received.Load(),
	}
}

// bound are the credentials for a host, as it stands now.
func (s *state) bound(h egress.Host) []*credential {
	var found []*credential
	for _, c := range s.credentials {
		if c.Anywhere || slices.ContainsFunc(c.hosts, func(p egress.Pattern) bool { return p.Match(h) }) {
			found = append(found, c)
		}
	}
	return found
}
