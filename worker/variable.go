package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/bailey-platform/bailey/api"
)

// A Variable is one of a box's environment whose value the plane keeps, in a vault of
// the session: the box has a placeholder, and the value is asked for when a request that
// may carry it is about to leave.
type Variable struct {
	Name string

	// Hosts are where the value may go, with "*." before a name for all below it, at any
	// depth. Nil: wherever the policy lets the box go.
	Hosts []string

	Header, Body bool // where in a request it may stand

	// Value asks for the value. It may be called by several goroutines.
	Value func(context.Context) (string, error)
}

// A lender asks the plane for the variables of a session, as whoever serves it now.
type lender struct {
	plane *plane
	cred  credential
	work  string

	mu     sync.Mutex
	values map[api.CredentialID]*lent
}

// lent is the value of one variable, kept for a while.
type lent struct {
	mu    sync.Mutex
	value string
	at    time.Time // when it was asked for; zero: never
}

const (
	// lentFor is how long a value is used without asking again: how long a change of it
	// takes to arrive at most, while the plane answers.
	lentFor = time.Minute

	// lentStale is how long it is used while the plane does not.
	lentStale = 5 * time.Minute

	lendTries = 3
)

// newLender returns nil if the plane is one that lends nothing.
func (w *Worker) newLender(cred credential, work string) *lender {
	if w.cfg.Networks == nil || !requeues(w.cfg.BaseURL) {
		return nil // Anthropic's own, or boxes have no network to use a variable in
	}
	return &lender{plane: w.plane, cred: cred, work: work, values: make(map[api.CredentialID]*lent)}
}

// variables returns what the box of the session is to have. value is what asks for the
// value of each. A plane that does not know the question has none.
func (l *lender) variables(ctx context.Context, value func(context.Context, api.CredentialID) (string, error)) ([]Variable, error) {
	if l == nil {
		return nil, nil
	}
	retry := backoff{min: 200 * time.Millisecond, max: 2 * time.Second}
	for tries := 1; ; tries++ {
		all, err := l.plane.variables(ctx, l.cred, l.work)
		switch {
		case err == nil:
			var out []Variable
			for _, v := range all {
				hosts := v.Networking.AllowedHosts
				if v.Networking.Type != api.NetworkLimited {
					hosts = nil
				} else if len(hosts) == 0 {
					continue
				}
				out = append(out, Variable{
					Name: v.Name, Hosts: hosts, Header: v.InjectionLocation.Header, Body: v.InjectionLocation.Body,
					Value: func(ctx context.Context) (string, error) { return value(ctx, v.CredentialID) },
				})
			}
			return out, nil
		case gone(err), statusOf(err) == http.StatusMethodNotAllowed:
			return nil, nil
		case tries == lendTries || final(err) || !sleep(ctx, retry.next()):
			return nil, fmt.Errorf("the variables of the session are not known: %w", err)
		}
	}
}

// value returns the value of a variable.
func (l *lender) value(ctx context.Context, id api.CredentialID) (string, error) {
	l.mu.Lock()
	v := l.values[id]
	if v == nil {
		v = new(lent)
		l.values[id] = v
	}
	l.mu.Unlock()

	v.mu.Lock() // one asks for all
	defer v.mu.Unlock()
	age := time.Since(v.at)
	if !v.at.IsZero() && age < lentFor {
		return v.value, nil
	}
	value, err := l.plane.variableValue(ctx, l.cred, l.work, id)
	if err != nil {
		// What the plane refuses is over at once; what it does not answer, in a while.
		away := statusOf(err) == 0 || statusOf(err) >= 500 || statusOf(err) == http.StatusTooManyRequests
		if away && !v.at.IsZero() && age < lentStale {
			return v.value, nil
		}
		v.value, v.at = "", time.Time{}
		return "", err
	}
	v.value, v.at = value, time.Now()
	return value, nil
}

// lend makes l whom the box asks for variables, in place of who served it before.
func (b *box) lend(l *lender) { b.lender.Store(l) }

var errNobodyServes = errors.New("nobody serves the session")

// variable returns the value of a variable of the box.
func (b *box) variable(ctx context.Context, id api.CredentialID) (string, error) {
	l := b.lender.Load()
	if l == nil {
		return "", errNobodyServes
	}
	return l.value(ctx, id)
}

func (p *plane) variablesPath(work string) string {
	return "v1/environments/" + url.PathEscape(p.env) + "/work/" + url.PathEscape(work) + "/variables"
}

// variables asks which variables the box of an item's session is to have. The question
// is our own plane's alone.
func (p *plane) variables(ctx context.Context, cred credential, work string) ([]api.SessionVariable, error) {
	var out api.SessionVariables
	err := p.do("read variables", cred, callTimeout, func(opts ...option.RequestOption) error {
		return p.client.Get(ctx, p.variablesPath(work), nil, &out, p.beta(opts)...)
	})
	return out.Data, err
}

// variableValue asks for the value of one of them.
func (p *plane) variableValue(ctx context.Context, cred credential, work string, id api.CredentialID) (string, error) {
	var out api.VariableValue
	err := p.do("read the value of a variable", cred, callTimeout, func(opts ...option.RequestOption) error {
		return p.client.Post(ctx, p.variablesPath(work)+"/"+url.PathEscape(string(id))+"/value", nil, &out, p.beta(opts)...)
	})
	return string(out.Value), err
}
