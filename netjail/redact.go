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

// secrets are the values of credentials that were used or are at hand, to be recognised in
// what comes back.
type secrets struct {
	current atomic.Pointer[patterns]

	mu           sync.Mutex
	placeholders map[string]string    // by name
	values       map[string][]learned // by name, the latest last
}

// learned is such a value.
type learned struct {
	value string
	uses  int // requests under way that it was put into
}

// valuesMax is how many values of a credential that rotates are remembered, besides those
// that requests under way were sent with.
const valuesMax = 4

func newSecrets(placeholders map[string]string) *secrets {
	s := &secrets{placeholders: maps.Clone(placeholders), values: make(map[string][]learned)}
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

// learn has a value recognised from here on, whatever becomes of its credential: at least
// until forget is called, when the request that it is put into is over.
func (s *secrets) learn(name, value string) (forget func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.values[name]
	now := learned{value: value}
	i := slices.IndexFunc(was, func(l learned) bool { return l.value == value })
	if i >= 0 {
		now = was[i]
		was = slices.Delete(was, i, i+1)
	}
	now.uses++
	s.values[name] = append(was, now)
	if i < 0 {
		s.trim(name)
		s.rebuild()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.values[name] {
			if l := &s.values[name][i]; l.value == value {
				l.uses--
			}
		}
		if s.trim(name) {
			s.rebuild()
		}
	}
}

// trim drops the oldest values of a credential that are too many and in no use, and
// reports whether there were any. The caller holds mu.
func (s *secrets) trim(name string) (dropped bool) {
	extra := len(s.values[name]) - valuesMax
	s.values[name] = slices.DeleteFunc(s.values[name], func(l learned) bool {
		drop := extra > 0 && l.uses == 0
		extra--
		dropped = dropped || drop
		return drop
	})
	return dropped
}

// rebuild makes the patterns anew. The caller holds mu.
func (s *secrets) rebuild() {
	p := new(patterns)
	for name, values := range s.values {
		for _, l := range values {
			for _, form := range forms(l.value) {
				p.add(form, s.placeholders[name])
			}
		}
	}
	s.current.Store(p)
}

func (s *secrets) patterns() *patterns { return s.current.Load() }

// Redact returns text with every value of a credential that the box used or that is at
// hand, and the usual encodings of it, replaced by its placeholder. It may return text
// itself.
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

// fixed are patterns that do not change.
func fixed(p *patterns) func() *patterns { return func() *patterns { return p } }

// patterns are texts that are replaced by others. They are immutable once in use.
type patterns struct {
	by   [256][]pair // by the byte that the old text starts with, the longest first
	most int         // the length of the longest
}

type pair struct{ old, new []byte }

func (p *patterns) add(old, new string) {
	if old == "" {
		return
	}
	same := p.by[old[0]]
	at := len(same)
	for i, q := range same {
		if string(q.old) == old {
			return
		}
		if len(q.old) < len(old) {
			at = min(at, i)
		}
	}
	p.by[old[0]] = slices.Insert(same, at, pair{[]byte(old), []byte(new)})
	p.most = max(p.most, len(old))
}

// find returns the first match in b, the longest if several begin there. It goes through
// b once, whatever the patterns are.
func (p *patterns) find(b []byte) (at int, match *pair) {
	if p.most == 0 {
		return -1, nil
	}
	for i, c := range b {
		same := p.by[c]
		for k := range same {
			if bytes.HasPrefix(b[i:], same[k].old) {
				return i, &same[k]
			}
		}
	}
	return -1, nil
}

// begun returns where in b the first match could begin that b does not hold all of.
func (p *patterns) begun(b []byte) int {
	for i := p.safe(len(b)); i < len(b); i++ {
		if slices.ContainsFunc(p.by[b[i]], func(q pair) bool { return len(q.old) > len(b)-i && bytes.HasPrefix(q.old, b[i:]) }) {
			return i
		}
	}
	return len(b)
}

// safe is up to where whatever begins in n bytes is within them.
func (p *patterns) safe(n int) int { return max(0, n-p.most+1) }

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
// beginning of a match, so that a stream of events arrives as it is sent, and holds no
// more than a chunk of the stream and one replacement.
type rewriter struct {
	from     io.Reader
	patterns func() *patterns // as they are by now
	replace  func(*pair) ([]byte, error)

	buf  []byte
	rest []byte // the part of buf that was read and is not out yet
	end  error  // what comes after it
	out  []byte // what is ready
}

const rewriteChunk = 32 << 10

func newRewriter(from io.Reader, p func() *patterns, replace func(*pair) ([]byte, error)) io.Reader {
	return &rewriter{from: from, patterns: p, replace: replace}
}

func (r *rewriter) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(r.out) == 0 {
			more, err := r.next()
			if err != nil && n == 0 {
				return 0, err
			}
			if err == nil && !more && n == 0 {
				r.fill()
				continue
			}
			if err != nil || !more {
				return n, nil
			}
		}
		k := copy(b[n:], r.out)
		r.out = r.out[k:]
		n += k
	}
	return n, nil
}

// next makes out of the rest what can be, and reports whether there was anything.
func (r *rewriter) next() (more bool, err error) {
	p := r.patterns()
	at, match := p.find(r.rest)
	sure := len(r.rest)
	// A match that is not all there may begin before the one that was found, or be longer.
	if r.end == nil && (match == nil || at >= p.safe(len(r.rest))) {
		sure = p.begun(r.rest)
	}
	switch {
	case match != nil && at == 0 && sure > 0:
		if r.out, err = r.replace(match); err != nil {
			r.rest, r.end = nil, err
			return false, err
		}
		r.rest = r.rest[len(match.old):]
		return true, nil
	case match != nil:
		sure = min(sure, at)
	}
	if sure > 0 {
		r.out, r.rest = r.rest[:sure], r.rest[sure:]
		return true, nil
	}
	if len(r.rest) == 0 {
		return false, r.end
	}
	return false, nil
}

// fill reads more, once nothing is out that is part of buf.
func (r *rewriter) fill() {
	held := len(r.rest)
	if len(r.buf)-held < rewriteChunk {
		room := held + rewriteChunk + r.patterns().most
		r.buf = append(make([]byte, 0, room), r.rest...)[:room]
	} else {
		copy(r.buf, r.rest)
	}
	var n int
	n, r.end = r.from.Read(r.buf[held:])
	r.rest = r.buf[:held+n]
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
