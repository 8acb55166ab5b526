package netjail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/egress"
)

// acceptAll takes the box's connections in until the listener is closed.
func (j *Jail) acceptAll(listener *net.TCPListener, connections *sync.WaitGroup) error {
	for {
		conn, err := listener.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			if !j.pause(err) {
				return err
			}
			continue
		}
		j.counters.accepted.Add(1)
		select {
		case j.slots <- struct{}{}:
		default:
			j.limit("connections", fmt.Sprintf("the box has %d connections open, which is as many as it may; more are reset", cap(j.slots)))
			reset(conn)
			continue
		}
		j.counters.open.Add(1)
		connections.Go(func() {
			defer func() {
				j.counters.open.Add(-1)
				<-j.slots
			}()
			defer j.recovered()
			defer conn.Close()
			j.serve(conn)
		})
	}
}

// pause waits a little after an error of the host's that passes, such as having no file
// descriptors left, and reports whether to go on.
func (j *Jail) pause(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) || !errno.Temporary() && errno != syscall.ENOBUFS && errno != syscall.ENOMEM {
		return false
	}
	j.log.Warn("the host is short of something that the network of a box needs", "box", j.box, "error", err)
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-j.ctx.Done():
	}
	return true
}

// reset closes a connection so that the other end is told that it failed, and does not
// take it for one that ended well.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // closed either way
	_ = conn.Close()
}

// A link is one connection of the box's.
type link struct {
	jail *Jail
	conn *net.TCPConn
	host egress.Host
	port uint16
	rule string // that allows it
	d    Decision

	opened time.Time

	mu       sync.Mutex
	led      []netip.AddrPort // the addresses that it was found to lead to
	upstream *net.TCPConn     // once there is one that bytes are passed to as they are
	isCut    string           // why it was cut, if it was
}

// serve decides about one connection and serves it to its end.
func (j *Jail) serve(conn *net.TCPConn) {
	// The other end answers no probes while the box is frozen, and is no less alive.
	_ = conn.SetKeepAlive(false)
	to, err := j.original(conn)
	if err != nil {
		d := j.decision(ActionConnect)
		d.Rule, d.Reason = egress.DefaultRule, "a connection's destination is unknown: it did not come by the box's network"
		j.log.Warn("a connection's destination is unknown", "box", j.box, "error", err)
		j.refuse(d)
		reset(conn)
		return
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if to.Port() == dnsPort {
		stop := context.AfterFunc(j.ctx, func() { reset(conn) })
		defer stop()
		j.answerStream(conn)
		return
	}
	l := &link{jail: j, conn: conn, port: to.Port(), opened: time.Now()}
	l.d = j.decision(ActionConnect)
	l.d.Host, l.d.Port, l.d.Protocol = to.Addr().String(), to.Port(), "tcp"
	host, ok := j.names.host(to.Addr())
	if !ok {
		l.deny(egress.Verdict{Rule: egress.DefaultRule, Reason: fmt.Sprintf("%s is blocked: the address stands for no name that this box has asked for", to)})
		return
	}
	l.host, l.d.Host = host, host.String()
	s := j.state.Load()
	access, verdict := s.rules.Connect(host, to.Port())
	if !verdict.Allow {
		l.deny(verdict)
		return
	}
	l.rule, l.d.Rule = verdict.Rule, verdict.Rule

	// A credential for the host has TLS opened on its usual port, whatever else is allowed
	// there.
	opening := to.Port() == 443 && len(s.bound(host)) > 0
	if access.TCP && !opening {
		l.pass(nil, func(a egress.Access, bound bool) bool { return a.TCP && !bound })
		return
	}
	l.look(access, opening)
}

// look serves a connection by what the box says first.
func (l *link) look(access egress.Access, opening bool) {
	stop := context.AfterFunc(l.jail.ctx, func() { reset(l.conn) })
	defer stop()
	if l.conn.SetReadDeadline(time.Now().Add(l.jail.limits.Greeting)) != nil {
		return // it is closed
	}
	first := make([]byte, 4096)
	n, err := l.conn.Read(first)
	first = first[:n]
	switch {
	case n == 0 && access.TCP && errors.Is(err, os.ErrDeadlineExceeded):
		// A protocol in which the server speaks first, so no TLS.
		l.settled()
		l.pass(nil, func(a egress.Access, _ bool) bool { return a.TCP })
	case n == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		l.deny(l.blocked("%s allows only %s there, and nothing was said for %s", l.rule, spoken(access), l.jail.limits.Greeting))
	case n == 0:
		// Whoever connects and says nothing wants to know whether that works.
		l.conn.Close()
	case first[0] == recordTypeHandshake && (access.TLS || access.HTTPS || opening):
		l.greet(first, access, opening)
	case access.TCP:
		l.settled()
		l.pass(first, func(a egress.Access, _ bool) bool { return a.TCP })
	case first[0] != recordTypeHandshake && access.HTTP:
		l.settled()
		l.d.Protocol = "http"
		l.judged(newGuest(l, first), false)
	default:
		l.deny(l.blocked("%s allows only %s there, and this is something else", l.rule, spoken(access)))
	}
}

// settled ends the time that the box has for its first words.
func (l *link) settled() {
	_ = l.conn.SetReadDeadline(time.Time{}) // an error comes again with the next read
}

// greet serves a connection that begins like TLS.
func (l *link) greet(first []byte, access egress.Access, opening bool) {
	l.d.Protocol = "tls"
	hello, raw, err := readHello(&replay{l.conn, first})
	if err != nil {
		if access.TCP {
			l.settled()
			l.pass(raw, func(a egress.Access, _ bool) bool { return a.TCP })
			return
		}
		l.deny(l.blocked("its TLS greeting cannot be read: %v", err))
		return
	}
	open := opening || access.HTTPS && !access.TLS
	if verdict := l.named(hello, access, open); !verdict.Allow {
		l.deny(verdict)
		return
	}
	if open && l.jail.authority == nil {
		l.deny(l.blocked("its TLS would have to be opened, and the box was started without an authority that its programs trust; a new box has one"))
		return
	}
	l.settled()
	if open {
		l.d.Protocol = "https"
		l.judged(newGuest(l, raw), true)
		return
	}
	l.pass(raw, func(a egress.Access, bound bool) bool { return (a.TLS || a.TCP) && !bound })
}

// named decides whether a greeting is for the host that was connected to.
func (l *link) named(hello hello, access egress.Access, open bool) egress.Verdict {
	_, isAddr := l.host.Addr()
	switch sni, err := egress.ParseHost(hello.serverName); {
	case hello.serverName == "" && (isAddr || open || access.NoSNI || access.TCP):
		// An address has no name to say. Where TLS is opened, the requests say it.
	case hello.serverName == "":
		return l.blocked("its TLS greeting names no host (SNI); connect by name, or have the operator set allow-no-sni on rule %q", l.rule)
	case isAddr && !open:
		// The address was allowed, whoever is served there.
	case err != nil || sni != l.host:
		return l.blocked("its TLS greeting is for another host, %q", printable(hello.serverName))
	}
	if hello.ech && !open && !access.ECH && !access.TCP {
		return l.blocked("its TLS greeting is encrypted (ECH), so the host cannot be seen; turn that off in the client, or have the operator set allow-ech on rule %q", l.rule)
	}
	return egress.Verdict{Allow: true}
}

// spoken lists what may be spoken.
func spoken(a egress.Access) string {
	var names []string
	for _, p := range []struct {
		may  bool
		name string
	}{{a.HTTP, "http"}, {a.TLS || a.HTTPS, "tls"}, {a.TCP, "tcp"}} {
		if p.may {
			names = append(names, p.name)
		}
	}
	return strings.Join(names, " and ")
}

// blocked is a verdict against what is said on the connection.
func (l *link) blocked(format string, args ...any) egress.Verdict {
	return egress.Verdict{
		Rule:   l.rule,
		Reason: fmt.Sprintf("%s is blocked by the network policy: ", l.at()) + fmt.Sprintf(format, args...),
	}
}

func (l *link) deny(v egress.Verdict) {
	l.d.Rule, l.d.Reason = v.Rule, v.Reason
	l.jail.refuse(l.d)
	reset(l.conn)
}

// cut ends the connection for a reason of ours.
func (l *link) cut(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isCut == "" {
		l.isCut = why
	}
	reset(l.conn)
	if l.upstream != nil {
		reset(l.upstream)
	}
}

// at is where the connection goes, as people write it.
func (l *link) at() string { return l.host.JoinPort(l.port) }

// wasCut is why cut was called, or "".
func (l *link) wasCut() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isCut
}

// grant is what the policy allows in the connection: as long as may says so of the
// accesses that the host has.
func (l *link) grant(may func(a egress.Access, bound bool) bool) *grant {
	return &grant{
		link: l,
		holds: func(s *state) bool {
			access, verdict := s.rules.Connect(l.host, l.port)
			bound := l.port == 443 && len(s.bound(l.host)) > 0
			return verdict.Allow && may(access, bound) && l.reachable(s)
		},
		cut: l.cut,
	}
}

// reachable reports whether the addresses that the connection leads to are still allowed.
func (l *link) reachable(s *state) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.ContainsFunc(l.led, func(to netip.AddrPort) bool { return !s.rules.Dial(l.host, to).Allow })
}

// pass connects to the host and passes on what is said, beginning with first, as it is.
func (l *link) pass(first []byte, may func(a egress.Access, bound bool) bool) {
	j := l.jail
	g := l.grant(may)
	defer j.release(g)
	if !j.admit(g) {
		l.deny(l.blocked("it was allowed until just now"))
		return
	}
	l.d.Allow = true
	if err := j.note(l.d); err != nil {
		l.deny(l.blocked("%v", err))
		return
	}
	upstream, err := l.dial(j.ctx)
	if err != nil {
		l.unreachable(err)
		return
	}
	defer upstream.Close()
	l.mu.Lock()
	l.upstream = upstream
	gone := l.isCut != ""
	l.mu.Unlock()
	if gone {
		l.end(0, 0, "")
		return
	}
	sent, received, err := splice(l.conn, upstream, first)
	why := ""
	if err != nil {
		why = "broken off: " + plain(err).Error()
	}
	l.end(sent, received, why)
}

// dial connects to the host at an address that the policy of this moment allows.
func (l *link) dial(ctx context.Context) (*net.TCPConn, error) {
	judge := func(to netip.AddrPort) egress.Verdict { return l.jail.state.Load().rules.Dial(l.host, to) }
	conn, to, err := l.jail.dialer.Load().Dial(ctx, l.host, l.port, judge)
	if err != nil || !to.IsValid() {
		return conn, err
	}
	l.mu.Lock()
	if !slices.Contains(l.led, to) {
		l.led = append(l.led, to)
	}
	l.mu.Unlock()
	// A change of policy before it was on the list did not see it.
	if verdict := judge(to); !verdict.Allow {
		conn.Close()
		return nil, &egress.Refused{Verdict: verdict}
	}
	return conn, nil
}

// unreachable ends a connection whose host could not be connected to.
func (l *link) unreachable(err error) {
	var refused *egress.Refused
	if errors.As(err, &refused) {
		l.deny(refused.Verdict)
		return
	}
	if l.jail.ctx.Err() == nil {
		l.jail.tell(l.d.Call, fmt.Sprintf("%s is allowed by the network policy, but could not be reached: %v", l.at(), plain(err)))
	}
	reset(l.conn)
	l.end(0, 0, "not reached: "+plain(err).Error())
}

// plain is the part of an error of a connection that says what is wrong with the other
// end, without our own addresses.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// end records what went over the connection, and why it ended if that is not as either
// end wanted it.
func (l *link) end(sent, received int64, why string) {
	j := l.jail
	j.counters.sent.Add(sent)
	j.counters.received.Add(received)
	d := l.d
	d.Time, d.Action, d.Allow = time.Now(), ActionEnd, true
	d.Sent, d.Received, d.Reason = sent, received, why
	if cut := l.wasCut(); cut != "" {
		d.Reason = cut
	}
	_ = j.note(d) // there is nothing to refuse any more
}

// A replay is a connection of which something was read already, which is read again.
type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}
