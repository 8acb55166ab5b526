package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// A Dialer connects to hosts that rules allow, at addresses that rules allow. The zero
// Dialer works. It is safe for concurrent use, and one serves any number of boxes.
type Dialer struct {
	// Resolver looks names up. Nil means the host's own resolver.
	Resolver Resolver

	// Proxy is what connections are made through; nil for none.
	Proxy *Proxy

	// Timeout bounds one Dial, the look-up included; 15 s if it is 0.
	Timeout time.Duration

	mu    sync.Mutex
	known map[string]answer
}

// A Resolver looks up the addresses of a name. [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// An answer is what a name was found to lead to, for a short while: a box that opens many
// connections to a host does not ask for it each time.
type answer struct {
	addrs []netip.Addr
	until time.Time
}

const (
	answerLife  = 20 * time.Second
	answersMax  = 1024 // names remembered
	addrsMax    = 16   // addresses of one name that are considered
	dialTimeout = 15 * time.Second
	attemptMin  = 2 * time.Second // for one address, when there are several
)

// A Refused is the error of a Dial that the rules do not allow.
type Refused struct{ Verdict Verdict }

func (e *Refused) Error() string { return e.Verdict.Reason }

// Dial connects to a port of h, which the caller was allowed by [Rules.Connect]. judge is
// asked about every address before it is connected to, and only what it allows is; it is
// asked once more about the address that the kernel is given, so that nothing between
// can swap it. If it allows none the error is a [*Refused].
//
// Through a proxy that resolves names itself, judge is asked about addresses only where h
// is one.
func (d *Dialer) Dial(ctx context.Context, h Host, port uint16, judge func(netip.AddrPort) Verdict) (*net.TCPConn, netip.AddrPort, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	addr, isAddr := h.Addr()
	if d.Proxy != nil && d.Proxy.resolves && !isAddr {
		conn, err := d.Proxy.dial(ctx, net.JoinHostPort(h.Name(), fmt.Sprint(port)))
		return conn, netip.AddrPort{}, err
	}
	addrs := []netip.Addr{addr}
	if !isAddr {
		var err error
		if addrs, err = d.lookup(ctx, h.Name()); err != nil {
			return nil, netip.AddrPort{}, err
		}
	}
	var allowed []netip.AddrPort
	var refused *Refused
	for _, addr := range addrs {
		to := netip.AddrPortFrom(addr.Unmap().WithZone(""), port)
		if verdict := judge(to); verdict.Allow {
			allowed = append(allowed, to)
		} else if refused == nil {
			refused = &Refused{verdict}
		}
	}
	if len(allowed) == 0 {
		if refused == nil {
			return nil, netip.AddrPort{}, fmt.Errorf("%s has no address", h)
		}
		return nil, netip.AddrPort{}, refused
	}
	var firstErr error
	for i, to := range allowed {
		conn, err := d.attempt(ctx, to, len(allowed)-i, judge)
		if err == nil {
			return conn, to, nil
		}
		if firstErr == nil {
			firstErr = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, netip.AddrPort{}, firstErr
}

// attempt dials one address, with its share of the time that is left.
func (d *Dialer) attempt(ctx context.Context, to netip.AddrPort, left int, judge func(netip.AddrPort) Verdict) (*net.TCPConn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(time.Until(deadline)/time.Duration(left), attemptMin))
		defer cancel()
	}
	if d.Proxy != nil {
		return d.Proxy.dial(ctx, to.String())
	}
	dialer := net.Dialer{ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		actual, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if verdict := judge(netip.AddrPortFrom(actual.Addr().Unmap(), actual.Port())); !verdict.Allow {
			return &Refused{verdict}
		}
		return nil
	}}
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (d *Dialer) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	now := time.Now()
	d.mu.Lock()
	found, ok := d.known[name]
	d.mu.Unlock()
	if ok && now.Before(found.until) {
		return found.addrs, nil
	}
	var resolver Resolver = net.DefaultResolver
	if d.Resolver != nil {
		resolver = d.Resolver
	}
	// The dot at the end keeps the resolver from trying the host's search domains.
	addrs, err := resolver.LookupNetIP(ctx, "ip", name+".")
	if err != nil {
		return nil, plainly(name, err)
	}
	addrs = addrs[:min(len(addrs), addrsMax)]
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.known) >= answersMax || d.known == nil {
		d.known = make(map[string]answer)
	}
	d.known[name] = answer{addrs, now.Add(answerLife)}
	return addrs, nil
}

// plainly says what is wrong without the addresses of the host's name servers, as a box
// may be shown it.
func plainly(name string, err error) error {
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) {
		switch {
		case dnsErr.IsNotFound:
			return fmt.Errorf("%s: there is no host of this name", name)
		case dnsErr.IsTimeout:
			return fmt.Errorf("%s: looking the name up took too long", name)
		}
		return fmt.Errorf("%s: the name could not be looked up", name)
	}
	return fmt.Errorf("look up %s: %w", name, err)
}
