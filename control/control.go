package control

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
	"github.com/bailey-platform/bailey/workload"
)

// Config of [New]. Zero durations and counts mean the defaults named.
type Config struct {
	Logger *slog.Logger

	// Clock is the time of every rule and every row; default time.Now.
	Clock func() time.Time

	// Rand is the source of identifiers and secrets; default crypto/rand.
	Rand io.Reader

	// Audit gets a record of what happens by itself, before it does: leases that
	// lapse, sessions that are ended. What is asked for by HTTP is recorded there.
	// Nil: none is kept.
	Audit *audit.Log

	// Vault seals the secrets that have to be given back. Nil: none can be stored.
	Vault *vault.Vault

	// HTTP reaches MCP servers and authorization servers, for credentials that are to be
	// renewed or tried. It says where connections may go. Nil: nowhere.
	HTTP *http.Client

	// Prices are list prices by model id, added to the built-in ones.
	Prices Prices

	// LeaseTTL is how long a worker's claim lasts between heartbeats. Default 60 s.
	LeaseTTL time.Duration

	// StartDeadline is how long a claimed item may go without its first
	// heartbeat before it is offered again. Default 120 s.
	StartDeadline time.Duration

	// DeliveriesMax is how often an item is handed out before the session is told
	// that no worker manages to run it. Default 5.
	DeliveriesMax int

	// UnclaimedAfter is how long an item may wait for a worker before the session
	// is told. Default 2 min.
	UnclaimedAfter time.Duration

	// TurnTTL is how long the loop's claim on a session lasts between renewals: the
	// longest pause after a crash of another replica. Default 15 s.
	TurnTTL time.Duration

	// QueueMax bounds the events of one session that wait for a turn. Default 1000.
	QueueMax int

	// Cloud says whether the sessions of cloud environments have somewhere to run, or
	// why not. It may take a while. Nil: they have not.
	Cloud func(context.Context) error

	// ShellsMax bounds the shells that are open at a time; below 0 there are none.
	// Default 16.
	ShellsMax int

	// ShellIdle is how long a shell may be open in which nothing is typed, and ShellFor
	// how long any. Defaults 30 min and 8 h; a worker's own bounds may be closer.
	ShellIdle, ShellFor time.Duration

	// ShellWait is how long a worker has to take a shell up. Default 60 s.
	ShellWait time.Duration

	// EdgeLease is how long an edge may be silent before what is attached to it counts
	// as lost. Default 15 s.
	EdgeLease time.Duration

	// Issuers makes the HTTP client that issuers of workloads' identities are asked for
	// their keys with; it trusts the CAs of the pool, or with nil the system's, and says
	// where connections may go. Nil: none is asked, and keys have to be inline.
	Issuers func(*x509.CertPool) *http.Client

	// TunnelDomain is what the domains of tunnels end in. Default tunnel.bailey.internal.
	TunnelDomain string

	// TunnelsMax bounds the tunnels that are not archived. Default 10.
	TunnelsMax int

	// Sole says that this process is the only one on its database, so that turns
	// held at its start are leftovers of a crash and are freed at once.
	Sole bool
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	setDefault(&c.LeaseTTL, 60*time.Second)
	setDefault(&c.StartDeadline, 120*time.Second)
	setDefault(&c.DeliveriesMax, 5)
	setDefault(&c.UnclaimedAfter, 2*time.Minute)
	setDefault(&c.TurnTTL, 15*time.Second)
	setDefault(&c.QueueMax, 1000)
	setDefault(&c.ShellsMax, 16)
	setDefault(&c.ShellIdle, 30*time.Minute)
	setDefault(&c.ShellFor, 8*time.Hour)
	setDefault(&c.ShellWait, time.Minute)
	setDefault(&c.EdgeLease, 15*time.Second)
	setDefault(&c.TunnelDomain, "tunnel.bailey.internal")
	setDefault(&c.TunnelsMax, api.TunnelsMax)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// A Control applies the rules over one database. It is safe for concurrent use.
type Control struct {
	cfg  Config
	db   *store.DB
	hub  *hub
	seen *pollers
	own  *ownKeys

	shells *shells

	keyFound atomic.Bool // that secrets are sealed with, and it is the one of all servers

	renewals renewals // of credentials' access tokens

	authorities authorities

	workloads *workload.Verifier
	refusals  refusals // of workloads
	faults    faults

	pruned time.Time // owned by the sweep
}

// New opens the database and returns the rules over it. The caller runs
// [Control.Run] and, at the end, calls Close.
func New(ctx context.Context, dbURL string, opt store.Options, cfg Config) (*Control, error) {
	cfg.setDefaults()
	c := &Control{cfg: cfg, hub: newHub(), seen: newPollers(), own: newOwnKeys(), shells: newShells()}
	c.workloads = workload.New(workload.Options{Client: cfg.Issuers, Clock: cfg.Clock})
	c.refusals.limit = rate.NewLimiter(refusalsPerSecond, refusalsBurst)
	opt.Logger, opt.Clock, opt.Notify = cfg.Logger, cfg.Clock, c.hub.publish
	db, err := store.Open(ctx, dbURL, opt)
	if err != nil {
		return nil, err
	}
	c.db = db
	if err := c.startVault(ctx); err != nil {
		db.Close()
		return nil, err
	}
	if cfg.Sole {
		if err := db.Write(ctx, (*store.Tx).FreeTurns); err != nil {
			db.Close()
			return nil, fmt.Errorf("free the turns of an earlier run: %w", err)
		}
	}
	return c, nil
}

// SetHTTP gives what Config.HTTP is for, where making that takes a Control. It is called
// before anything else is.
func (c *Control) SetHTTP(client *http.Client) { c.cfg.HTTP = client }

// closeWait is for renewals that are under way at the end: longer than a token endpoint
// has to answer.
const closeWait = renewTimeout + 5*time.Second

// Close closes the database; followers end. A renewal that an authorization server was
// asked for is waited for.
func (c *Control) Close() error {
	c.hub.close()
	if !c.renewals.end(closeWait) {
		c.cfg.Logger.Error("an access token was still being renewed at the end: its credential may have to be authorized again")
	}
	return c.db.Close()
}

// Engine names the database engine.
func (c *Control) Engine() string { return c.db.Engine() }

// ClockSkew is how far this process's clock is ahead of the database server's. The
// times of leases are those of the replica that writes them, so all have to agree.
func (c *Control) ClockSkew(ctx context.Context) (time.Duration, error) { return c.db.ClockSkew(ctx) }

// Ready is nil when the database answers.
func (c *Control) Ready(ctx context.Context) error { return c.db.Ping(ctx) }

// write runs fn in a transaction. A full disk is the one failure of the database
// that a caller can be told of: nothing was changed, and somebody must make room.
func (c *Control) write(ctx context.Context, fn func(*store.Tx) error) error {
	err := c.db.Write(ctx, fn)
	if errors.Is(err, store.ErrFull) {
		c.cfg.Logger.Error("the database's disk is full", "error", err)
		e := api.Overloaded(10*time.Second, "the server's disk is full: nothing was changed; make room and try again")
		e.Status, e.Type = http.StatusInsufficientStorage, api.TypeAPI
		return e
	}
	return err
}

// Full reports whether an error of this package means that the database's disk is
// full, which somebody may mend.
func (c *Control) Full(err error) bool {
	e := api.AsError(err)
	return e != nil && e.Status == http.StatusInsufficientStorage
}

// announce records what is about to happen by itself. With an error it must not.
func (c *Control) announce(r audit.Record) error {
	if c.cfg.Audit == nil {
		return nil
	}
	return c.cfg.Audit.Append(r)
}

// newID makes an identifier. Its randomness cannot run out: a failure of the
// source is a failure of the system.
func newID[T ~string](c *Control, prefix string) T {
	var e api.Entropy
	if _, err := io.ReadFull(c.cfg.Rand, e[:]); err != nil {
		panic("control: no randomness: " + err.Error())
	}
	return api.NewID[T](prefix, e)
}

// NewEventID returns an identifier for an event that is still to be written.
func (c *Control) NewEventID() api.EventID { return newID[api.EventID](c, api.PrefixEvent) }

// found turns the store's "no such row" into the public 404 of a noun.
func found(err error, noun, id string) error {
	if errors.Is(err, store.ErrNotFound) {
		return api.NotFound("%s %s was not found", noun, id)
	}
	return err
}

// A Principal is who asks, as the credential proved it.
type Principal struct {
	Kind          api.KeyKind
	KeyID         api.KeyID
	EnvironmentID api.EnvironmentID // of environment keys and session tokens
	SessionID     api.SessionID     // of session tokens
	WorkID        api.WorkID        // of session tokens
	TunnelID      api.TunnelID      // of tunnel tokens
	Parent        api.KeyID         // of session tokens: the key they were given out for
	Shell         bool              // of API keys: may open shells into boxes
	Tunnels       bool              // may manage tunnels

	// Of an access token: who it was given to.
	AccountID api.ServiceAccountID

	Own bool // a worker within this process; it has no key of the table
}

// keys are the credentials that have to stay good for the principal to be one.
func (p Principal) keys() []api.KeyID {
	return slices.DeleteFunc([]api.KeyID{p.KeyID, p.Parent}, func(id api.KeyID) bool { return id == "" })
}

// Actor names the principal in records of what was done.
func (p Principal) Actor() string {
	switch {
	case p.AccountID != "":
		return string(p.AccountID)
	case p.KeyID == "":
		return "this process" // a worker or an edge of its own
	}
	return string(p.KeyID)
}

// manages refuses a credential that is not for tunnels.
func (p Principal) manages() error {
	switch {
	case p.Tunnels:
		return nil
	case p.Kind == api.KeyAPI:
		return api.Forbidden("this key may not manage tunnels; make one that may: bailey keys create --name NAME --scope tunnels")
	}
	return api.Forbidden("managing tunnels needs an API key with the scope tunnels; %s is not enough", kindName(p.Kind))
}

// admin refuses everybody but the holder of an API key.
func (p Principal) admin() error {
	if p.Kind != api.KeyAPI {
		return api.Forbidden("this operation needs an API key; %s is not enough", kindName(p.Kind))
	}
	return nil
}

// works refuses a credential that is not for the work of env. What belongs to
// another environment does not exist for it.
func (p Principal) works(env api.EnvironmentID) error {
	if p.Kind != api.KeyAPI && p.EnvironmentID != env {
		return api.NotFound("environment %s was not found", env)
	}
	return nil
}

// sees reports whether the credential reaches a session.
func (p Principal) sees(s *store.Session) bool {
	switch p.Kind {
	case api.KeyAPI:
		return true
	case api.KeyEnvironment:
		return s.EnvironmentID == p.EnvironmentID
	default:
		return s.ID == p.SessionID
	}
}

func kindName(k api.KeyKind) string {
	switch k {
	case api.KeyEnvironment:
		return "an environment key"
	case api.KeySession:
		return "a session token"
	case api.KeyEdge:
		return "an edge key"
	case api.KeyTunnelToken:
		return "a tunnel token"
	case api.KeyTunnels:
		return "a key for tunnels alone"
	}
	return "an API key"
}
