package netjail

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// secrets are the values of credentials that were used, to be recognised in what comes
// back.
type secrets struct {
	current atomic.Pointer[patterns]

	mu           sync.Mutex
	placeholders map[string]string   // by name
	values       map[string][]string // by name, the latest last
}

// valuesMax is how many values of a credential that rotates are remembered.
const valuesMax = 4

func newSecrets(placeholders map[string]string) *secrets {
	s := &secrets{placeholders: maps.Clone(placeholders), values: make(map[string][]string)}
	if s.placeholders == nil {
		s.placeholders = make(map[string]string)
	}
	s.current.Store(new(patterns))
	return s
}

// placeholder is that of a credential, always the same in this box.
func (s *secrets) placeholder(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.placeholders[name] == "" {
		s.placeholders[name] = newPlaceholder()
	}
	return s.placeholders[name]
}

func (s *secrets) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.placeholders)
}

// learn has a value recognised from here on.
func (s *secrets) learn(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.values[name], value) {
		return
	}
	s.values[name] = append(s.values[name], value)
	if n := len(s.values[name]); n > valuesMax {
		s.values[name] = s.values[name][n-valuesMax:]
	}
	p := new(patterns)
	for name, values := range s.values {
		for _, value := range values {
			for _, form := range forms(value) {
				p.add(form, s.placeholders[name])
			}
		}
	}
	s.current.Store(p)
}

func (s *secrets) patterns() *patterns { return s.current.Load() }

// Redact returns text with every value of a credential that the box used, and the usual
// encodings of it, replaced by its placeholder. It may return text itself.
func (j *Jail) Redact(text []byte) []byte { return j.secrets.patterns().redact(text) }

// partMin is the least length of a part of an encoded value that is recognised.
const partMin = 8

// forms are the ways in which a value may come back.
func forms(value string) []string {
	all := []string{value, url.QueryEscape(value), url.PathEscape(value), jsonEscape(value), hex.EncodeToString([]byte(value))}
	all = append(all, strings.ToUpper(all[4]))
	if quoted := strings.ReplaceAll(jsonEscape(value), "/", `\/`); quoted != value {
		all = append(all, quoted)
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		all = append(all, encoding.EncodeToString([]byte(value)))
		// As part of something longer it can begin at any of three places in a group. The
		// characters that depend on it alone are the same wherever it stands.
		for before := range 3 {
			encoded := encoding.WithPadding(base64.NoPadding).EncodeToString(append(make([]byte, before), value...))
			part := encoded[(before*8+5)/6 : (before+len(value))*8/6]
			if len(part) >= partMin {
				all = append(all, part)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// patterns are texts that are replaced by others. They are immutable once in use.
type patterns struct {
	pairs  []pair
	starts [256]bool // the bytes that some old text starts with
	most   int       // the length of the longest
}

type pair struct{ old, new []byte }

func (p *patterns) add(old, new string) {
	if old == "" || slices.ContainsFunc(p.pairs, func(q pair) bool { return string(q.old) == old }) {
		return
	}
	p.pairs = append(p.pairs, pair{[]byte(old), []byte(new)})
	p.starts[old[0]] = true
	p.most = max(p.most, len(old))
}

// find returns the first match in b, the longest if several begin there.
func (p *patterns) find(b []byte) (at int, match *pair) {
	at = -1
	for i := range p.pairs {
		q := &p.pairs[i]
		within := b
		if at >= 0 {
			within = b[:min(at+len(q.old), len(b))]
		}
		if k := bytes.Index(within, q.old); k >= 0 && (at < 0 || k < at || k == at && len(q.old) > len(match.old)) {
			at, match = k, q
		}
	}
	return at, match
}

// begun returns where in b the last match could begin that b does not hold all of.
func (p *patterns) begun(b []byte) int {
	for i := max(0, len(b)-p.most+1); i < len(b); i++ {
		if p.starts[b[i]] && slices.ContainsFunc(p.pairs, func(q pair) bool { return len(q.old) > len(b)-i && bytes.HasPrefix(q.old, b[i:]) }) {
			return i
		}
	}
	return len(b)
}

func (p *patterns) redact(text []byte) []byte {
	at, match := p.find(text)
	if match == nil {
		return text
	}
	var clean []byte
	for ; match != nil; at, match = p.find(text) {
		clean = append(append(clean, text[:at]...), match.new...)
		text = text[at+len(match.old):]
	}
	return append(clean, text...)
}

// replaced and filled are what a match is replaced by: its other text, or as many
// asterisks as it is long.
func replaced(p *pair) ([]byte, error) { return p.new, nil }
func filled(p *pair) ([]byte, error)   { return bytes.Repeat([]byte{'*'}, len(p.old)), nil }

// A rewriter replaces texts in a stream. It holds back no more than what could be the
// beginning of a match, so that a stream of events arrives as it is sent.
type rewriter struct {
	from     io.Reader
	patterns *patterns
	replace  func(*pair) ([]byte, error)

	buf  []byte // what was read; the beginning is held back from the last time
	held int    // how much of buf is
	out  []byte // what is ready
	err  error  // what comes after it
}

const rewriteChunk = 32 << 10

func newRewriter(from io.Reader, p *patterns, replace func(*pair) ([]byte, error)) io.Reader {
	if len(p.pairs) == 0 {
		return from
	}
	return &rewriter{from: from, patterns: p, replace: replace, buf: make([]byte, p.most+rewriteChunk)}
}

func (r *rewriter) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.from.Read(r.buf[r.held:])
		r.err = err
		if err := r.rewrite(r.buf[:r.held+n]); err != nil {
			r.err = err
		}
	}
	n := copy(b, r.out)
	r.out = r.out[n:]
	return n, nil
}

// rewrite makes out of what was read, and keeps the rest.
func (r *rewriter) rewrite(b []byte) error {
	r.out = nil
	for {
		at, match := r.patterns.find(b)
		if match == nil {
			break
		}
		// A longer one may begin at the same place and not have arrived in full.
		if r.err == nil && r.patterns.begun(b) <= at {
			break
		}
		text, err := r.replace(match)
		if err != nil {
			return err
		}
		r.out = append(append(r.out, b[:at]...), text...)
		b = b[at+len(match.old):]
	}
	keep := len(b)
	if r.err == nil {
		keep = r.patterns.begun(b)
	}
	r.out = append(r.out, b[:keep]...)
	r.held = copy(r.buf, b[keep:])
	return nil
}

// decode has the body of a response in the clear. We asked for that, and not every host
// cares.
func decode(r *http.Response) error {
	switch encoding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header["Content-Encoding"], ","))); encoding {
	case "", "identity":
		return nil
	case "gzip", "x-gzip":
		body := r.Body
		plain, err := gzip.NewReader(body)
		if err != nil {
			return fmt.Errorf("response in gzip: %w", err)
		}
		r.Body = &readCloser{plain, body, func() {}}
		r.ContentLength = -1
		r.Header.Del("Content-Length")
		r.Header.Del("Content-Encoding")
		return nil
	default:
		return errors.Join(errUnreadable, fmt.Errorf("Content-Encoding %.40q", encoding))
	}
}

var errUnreadable = errors.New("the response is encoded in a way that secrets in it could not be seen")
