package netjail

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/egress"
)

// A Credential is a secret that a box may use and never sees. In the box's environment
// it is a placeholder; where that appears in a request to one of its hosts, over TLS, the
// value stands in the request that is passed on. A placeholder anywhere else is worth
// nothing: requests that carry it to other hosts are refused, as far as they are looked
// into.
//
// TLS to its hosts is opened on port 443, and on others where a rule says https. The
// hosts still have to be allowed by the policy.
type Credential struct {
	// Name is the variable in the box's environment; letters, digits and _.
	Name string

	// Hosts are patterns (see [egress.ParsePattern]); at least one, unless Anywhere has
	// it go wherever the policy allows, in which case TLS is opened to every host.
	Hosts    []string
	Anywhere bool

	// Where says in which parts of a request it is put in; at least one.
	Where Where

	// Value returns the secret. It is asked each time the credential is used, so that
	// it may rotate, and may be called by several goroutines. A value has
	// [ValueMin] to [ValueMax] bytes.
	Value func(context.Context) (string, error)

	// AtHand says that to ask for the value costs nothing and is nobody's business, so
	// that it is asked when the credential is bound and recognised from then on, rather
	// than from its first use.
	AtHand bool
}

// Where says in which parts of a request a credential is put in. Where it is not, its
// placeholder stays what it is.
type Where struct {
	Header bool // the values of headers, within Basic authentication too
	Body   bool // unless the body is compressed
	Query  bool
}

// Bounds of credentials.
const (
	CredentialsMax = 64 // of one box
	ValueMin       = 6  // bytes; less could not be told from ordinary text when it is to be taken out
	ValueMax       = 16 << 10
)

// PlaceholderPrefix is what every placeholder begins with, for people to recognise them.
const PlaceholderPrefix = "bailey_ph_"

// placeholderLen is how long a placeholder is, in bytes.
const placeholderLen = len(PlaceholderPrefix) + 26

func newPlaceholder() string { return PlaceholderPrefix + strings.ToLower(rand.Text()) }

// placeholders returns the placeholders in s, of whatever box.
func placeholders(s string) []string {
	var found []string
	for {
		i := strings.Index(s, PlaceholderPrefix)
		if i < 0 || len(s)-i < placeholderLen {
			return found
		}
		p := s[i : i+placeholderLen]
		random := p[len(PlaceholderPrefix):]
		if strings.Trim(random, "abcdefghijklmnopqrstuvwxyz234567") == "" && !slices.Contains(found, p) {
			found = append(found, p)
		}
		s = s[i+len(PlaceholderPrefix):]
	}
}

// A credential is a Credential that was checked.
type credential struct {
	Credential
	name        string
	placeholder string
	hosts       []egress.Pattern
}

// bind checks credentials and gives them placeholders.
func (j *Jail) bind(list []Credential) ([]*credential, error) {
	if len(list) > CredentialsMax {
		return nil, fmt.Errorf("%d credentials, and %d are the most", len(list), CredentialsMax)
	}
	var bound []*credential
	names := make(map[string]bool)
	for _, c := range list {
		b := &credential{Credential: c, name: c.Name}
		switch {
		case !isVariable(c.Name):
			return nil, fmt.Errorf("credential %.80q: its name has letters, digits and _ and begins with no digit, as that of a variable", c.Name)
		case names[c.Name]:
			return nil, fmt.Errorf("credential %q: there are two of this name", c.Name)
		case len(c.Hosts) == 0 && !c.Anywhere:
			return nil, fmt.Errorf("credential %q: it needs hosts that it may be sent to", c.Name)
		case c.Where == Where{}:
			return nil, fmt.Errorf("credential %q: it needs a place where it may be put in: header, body or query", c.Name)
		case c.Value == nil:
			return nil, fmt.Errorf("credential %q: it has no value", c.Name)
		}
		for _, host := range c.Hosts {
			pattern, err := egress.ParsePattern(host)
			if err != nil {
				return nil, fmt.Errorf("credential %q: %w", c.Name, err)
			}
			b.hosts = append(b.hosts, pattern)
		}
		names[c.Name] = true
		b.placeholder = j.secrets.placeholder(c.Name)
		bound = append(bound, b)
	}
	j.recognise(bound)
	return bound, nil
}

// atHandMax is how long the values of credentials that are at hand may take to arrive.
const atHandMax = 2 * time.Second

// recognise learns the values that are at hand: the box may come by them in another way
// than through us. One that cannot be had is no error before it is used.
func (j *Jail) recognise(list []*credential) {
	ctx, cancel := context.WithTimeout(j.ctx, atHandMax)
	defer cancel()
	for _, c := range list {
		if !c.AtHand {
			continue
		}
		if value, err := c.Value(ctx); err == nil && len(value) >= ValueMin && len(value) <= ValueMax {
			j.secrets.learn(c.name, value)() // it is remembered, but is in no request
		}
	}
}

func isVariable(s string) bool {
	return s != "" && len(s) <= 255 && (s[0] < '0' || s[0] > '9') &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// An unsent is the error of a request that is not sent because of a credential.
type unsent struct {
	status int
	reason string
}

func (e *unsent) Error() string { return e.reason }

// A use is the use of credentials in one request.
type use struct {
	guest    *guest
	ctx      context.Context
	request  Decision
	all      []*credential   // of the box
	bound    []*credential   // those that may be put in
	watched  bool            // what comes back is looked through for secrets
	reported map[string]bool // placeholders that stay what they are, and are on record
	head     int             // bytes that values have in the head

	mu     sync.Mutex // the body may still be sent when the response is over
	over   bool
	values map[*credential]string
	forget []func()
}

// putIn puts the values of credentials into a request that is about to be sent. They are
// recognised in responses at least until forget is called, when the request is over.
func (g *guest) putIn(r *http.Request, s *state) (forget func(), failed *unsent) {
	u := &use{
		guest: g, ctx: r.Context(), request: g.link.jail.decision(ActionCredential),
		all: s.credentials, values: make(map[*credential]string), reported: make(map[string]bool),
	}
	u.request.Host, u.request.Port, u.request.Protocol = g.link.host.String(), g.link.port, g.scheme()
	bound := s.bound(g.link.host)
	u.watched = len(bound) > 0
	if u.watched {
		g.watched.Store(true)
	}
	if g.tls {
		u.bound = bound
	}
	err := u.headAndBody(r)
	if err != nil && !errors.As(err, &failed) {
		failed = &unsent{http.StatusBadGateway, err.Error()}
	}
	return u.end, failed
}

// end lets go of the values.
func (u *use) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for _, forget := range u.forget {
		forget()
	}
	u.forget = nil
}

func (u *use) headAndBody(r *http.Request) error {
	if len(placeholders(r.URL.EscapedPath())) > 0 || len(placeholders(r.URL.Path)) > 0 {
		if _, err := u.text(r.URL.Path, nowhere, nil); err != nil {
			return err
		}
	}
	query, err := u.text(r.URL.RawQuery, func(w Where) bool { return w.Query }, url.QueryEscape)
	if err != nil {
		return err
	}
	r.URL = cleanURL(r.URL, query)
	for name, values := range r.Header {
		if _, err := u.text(name, nowhere, nil); err != nil {
			return err
		}
		for i, value := range values {
			if values[i], err = u.header(value); err != nil {
				return err
			}
		}
	}
	if !u.watched {
		return nil
	}
	// What comes back has to be read, and all of it.
	r.Header.Set("Accept-Encoding", "identity")
	if len(u.values) > 0 {
		r.Header.Del("Range")
		r.Header.Del("If-Range")
	}
	// Frames of a compressed websocket could not be read either.
	r.Header.Del("Sec-Websocket-Extensions")
	return u.body(r)
}

func nowhere(Where) bool { return false }

// header puts values into the value of a header.
func (u *use) header(value string) (string, error) {
	inHeader := func(w Where) bool { return w.Header }
	scheme, encoded, ok := strings.Cut(value, " ")
	if ok && strings.EqualFold(scheme, "Basic") {
		if decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded)); err == nil && len(placeholders(string(decoded))) > 0 {
			text, err := u.text(string(decoded), inHeader, nil)
			if err != nil {
				return "", err
			}
			return scheme + " " + base64.StdEncoding.EncodeToString([]byte(text)), nil
		}
	}
	text, err := u.text(value, inHeader, nil)
	if err == nil && strings.ContainsAny(text, "\r\n\x00") {
		err = &unsent{http.StatusBadGateway, "the value of a credential has characters that a header cannot have"}
	}
	return text, err
}

// text puts values into a text of the request.
func (u *use) text(s string, here func(Where) bool, escape func(string) string) (string, error) {
	for _, placeholder := range placeholders(s) {
		i := slices.IndexFunc(u.bound, func(c *credential) bool { return c.placeholder == placeholder })
		if i < 0 {
			return "", u.stray(placeholder)
		}
		c := u.bound[i]
		if !here(c.Where) {
			u.left(c)
			continue
		}
		value, err := u.value(c)
		if err != nil {
			return "", err
		}
		if escape != nil {
			value = escape(value)
		}
		// A box may name a placeholder as often as it likes.
		if u.head += strings.Count(s, placeholder) * len(value); u.head > putInMax {
			return "", &unsent{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the values of credentials would make the request's head more than %d KiB longer", putInMax>>10)}
		}
		s = strings.ReplaceAll(s, placeholder, value)
	}
	return s, nil
}

// putInMax bounds the values in the head of a request, in bytes.
const putInMax = 256 << 10

// stray refuses a request with a placeholder that has no business there.
func (u *use) stray(placeholder string) error {
	d := u.request
	d.Rule = egress.DefaultRule
	d.Credential = "a placeholder of no credential of this box"
	for _, c := range u.all {
		if c.placeholder == placeholder {
			d.Credential = c.name
		}
	}
	d.Reason = fmt.Sprintf("%s is a credential that may not be sent to %s", d.Credential, d.place())
	if !u.guest.tls {
		d.Reason += " without TLS"
	}
	u.guest.link.jail.refuse(d)
	return &unsent{http.StatusForbidden, d.Reason}
}

// left records that a placeholder was not replaced where it stands.
func (u *use) left(c *credential) {
	if u.reported[c.name] {
		return
	}
	u.reported[c.name] = true
	d := u.request
	d.Rule, d.Credential = egress.DefaultRule, c.name
	d.Reason = fmt.Sprintf("credential %s is not put into this part of a request to %s: the placeholder was sent as it is", c.name, d.place())
	u.guest.link.jail.refuse(d)
}

// value is the value of a credential, whose use in this request is then on record.
func (u *use) value(c *credential) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return "", errors.New("the request is over")
	}
	if value, ok := u.values[c]; ok {
		return value, nil
	}
	j := u.guest.link.jail
	d := u.request
	d.Allow, d.Credential, d.Rule = true, c.name, "credential "+c.name
	if err := j.note(d); err != nil {
		return "", &unsent{http.StatusForbidden, fmt.Sprintf("credential %s: %v", c.name, err)}
	}
	value, err := c.Value(u.ctx)
	switch {
	case err != nil:
		// The error may say where the secret is kept, which is not the box's business.
		j.log.Warn("a credential has no value", "box", j.box, "credential", c.name, "error", err)
		err = errors.New("its value is not available")
	case len(value) < ValueMin || len(value) > ValueMax:
		err = fmt.Errorf("its value has to have %d to %d bytes", ValueMin, ValueMax)
	}
	if err != nil {
		reason := fmt.Sprintf("credential %s cannot be used: %v; ask the operator", c.name, err)
		j.tell(d.Call, reason)
		return "", &unsent{http.StatusBadGateway, reason}
	}
	j.counters.credentials.Add(1)
	u.forget = append(u.forget, j.secrets.learn(c.name, value)) // before it is sent, so that it is known when it comes back
	u.values[c] = value
	return value, nil
}

// body has values put into the body as it is sent.
func (u *use) body(r *http.Request) error {
	swaps := new(patterns)
	for _, c := range u.bound {
		if c.Where.Body {
			swaps.add(c.placeholder, "")
		}
	}
	encoding := r.Header.Get("Content-Encoding")
	if swaps.most == 0 || r.Body == nil || r.Body == http.NoBody || encoding != "" && encoding != "identity" {
		return nil
	}
	escape := escapeFor(r.Header.Get("Content-Type"))
	body := newRewriter(r.Body, fixed(swaps), func(p *pair) ([]byte, error) {
		i := slices.IndexFunc(u.bound, func(c *credential) bool { return c.placeholder == string(p.old) })
		value, err := u.value(u.bound[i])
		if err == nil && escape != nil {
			value = escape(value)
		}
		return []byte(value), err
	})
	length := r.ContentLength
	r.ContentLength = -1
	r.Header.Del("Content-Length") // the transport writes it, if it is known
	if length < 0 || length > gatherMax {
		r.Body = &readCloser{body, r.Body, func() {}}
		return nil
	}
	// Servers want to know the length of what is short enough to know it.
	whole, err := u.guest.link.jail.gather(body, r.Body)
	if err != nil {
		return err
	}
	r.Body, r.ContentLength = whole, whole.length
	return nil
}

// escapeFor is how a value stands in a body of a type, so that it stays one value there.
func escapeFor(contentType string) func(string) string {
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch mediaType = strings.TrimSpace(mediaType); {
	case mediaType == "application/x-www-form-urlencoded":
		return url.QueryEscape
	case mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"):
		return jsonEscape
	}
	return nil
}

// jsonEscape is s as it stands between the quotes of a JSON string.
func jsonEscape(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(s) != nil {
		return s
	}
	quoted := strings.TrimSuffix(b.String(), "\n")
	return quoted[1 : len(quoted)-1]
}
