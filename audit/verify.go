package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Evidence is what a verifier knows besides the log. A key or a public key is
// required; everything else strengthens the verdict.
type Evidence struct {
	// Key proves each line by itself. Without it, lines are proven by the
	// checkpoints that follow them.
	Key *Key

	// Older are keys that the log had before. Lines of one that is neither here nor Key
	// are proven by what follows them.
	Older []Key

	// Public checks checkpoints and removals. With a Key it may be nil: the log
	// names it, and the Key vouches for that. Any that the log has had will do: each
	// change of keys is signed by the one before.
	Public PublicKey

	// Head is the contents of the head file, which the Key checks; nil if there
	// is none.
	Head []byte

	// Checkpoints are those that were kept elsewhere. The log must contain what
	// each of them covers.
	Checkpoints []Checkpoint
}

// A Summary is the two verdicts on a log, and what they rest on.
type Summary struct {
	// Intact says that every line stands as it was written, where it was
	// written. Proven is how far that is certain.
	Intact bool `json:"intact"`

	// Complete says that nothing is missing: not at the beginning or in the middle
	// but what the log's retention removed and signed for, and not at the end, as
	// far as the head file and the checkpoints tell. A log that is not intact is
	// never complete.
	Complete bool `json:"complete"`

	// BadRecord is the number of the first record that is wrong, or that should
	// be there and is not. 0 if nothing is wrong.
	BadRecord uint64 `json:"bad_record"`

	// Problem says what is wrong, in a sentence. Empty if nothing is.
	Problem string `json:"problem"`

	Log      string    `json:"log_id"`
	KeyID    string    `json:"key_id,omitempty"`     // of the key that proved the lines
	PublicID string    `json:"public_key,omitempty"` // of the key that proved the checkpoints
	Records  int       `json:"records"`              // lines that are there and verified
	Segments int       `json:"segments"`             // segments that are there
	FirstSeq uint64    `json:"first_record"`         // number of the first of them
	LastSeq  uint64    `json:"last_record"`          // and of the last
	First    time.Time `json:"first"`                // when the first was written
	Last     time.Time `json:"last"`                 // and the last
	LastHash string    `json:"last_hash"`            // hash of the last

	// Proven is the number of the last record that a key proves. What follows it is
	// chained to it, but could have been written by anybody.
	Proven uint64 `json:"proven_record"`

	KeyChanges  int     `json:"key_changes"` // of the log's keys, as each before signed
	Checkpoints int     `json:"checkpoints"` // signed ones found in the log, or held, that hold
	EndBy       string  `json:"end_proven_by,omitempty"`
	Removed     []Range `json:"removed,omitempty"` // by retention, as it signed
	Missing     []Range `json:"missing,omitempty"` // with nobody's word for it

	// ClockBack counts the lines that are older than the line before them: the
	// host's clock was set back.
	ClockBack int `json:"clock_back"`
}

// A Range is a stretch of records, by number.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Files that belong to the log at path.
func headPath(path string) string       { return path + ".head" }
func keyPath(path string) string        { return path + ".key" }
func signPath(path string) string       { return path + ".sign" }
func publicPath(path string) string     { return path + ".pub" }
func checkpointPath(path string) string { return path + ".checkpoint" }

// VerifyFile verifies the log at path, all its segments, with the keys and the
// head file beside it. An error means that they could not be read; what they say
// is in the Summary.
func VerifyFile(path string) (Summary, error) {
	key, older, err := ReadKeys(keyPath(path))
	if err != nil {
		return Summary{}, err
	}
	// The head first: a log that grows meanwhile is then ahead of it, never behind.
	head, err := os.ReadFile(headPath(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Summary{}, fmt.Errorf("read audit head: %w", err)
	}
	log, err := OpenSegments(path)
	if err != nil {
		return Summary{}, err
	}
	defer log.Close()
	return Verify(log, Evidence{Key: &key, Older: older, Head: head})
}

// Verify checks every line of a log, its segments one after the other, and where
// it begins and ends. It needs nothing else and may run anywhere; it holds one
// line in memory. The error is only ever a failure to read log, or evidence
// without a key.
func Verify(log io.Reader, e Evidence) (Summary, error) {
	if e.Key == nil && e.Public == nil {
		return Summary{}, errors.New("verifying an audit log takes its key or its public key")
	}
	v := newVerifier(e)
	torn, _, err := v.scan(log)
	if err != nil {
		return Summary{}, err
	}
	v.finish(torn)
	return v.Summary, nil
}

// A verifier goes through a log line by line.
type verifier struct {
	Summary
	e      Evidence
	public PublicKey // e.Public, or what the key vouches for

	// Of the segment that is being read.
	mac     *Key      // whose MACs its lines have; nil if that is not known
	signing PublicKey // whose signatures

	rekeys    []Rekey // up to it
	announced *Rekey  // by it, to come
	vouched   bool    // the evidence knows signing, or one that led to it
	foreign   uint64  // the first checkpoint by one that it does not know
	unkeyed   []unkeyed

	next    map[uint64]Checkpoint // held ones by the record whose hash they name
	gaps    []gap
	removed []Removed

	// What a log continues from.
	seg       *Segment // the newest
	segBegan  time.Time
	firstPrev string // the hash before the first line
	holds     []Hold // in force at the last line
	unsigned  int    // lines since the last checkpoint
	size      int64
}

// unkeyed is a segment whose key the evidence does not have.
type unkeyed struct {
	keyID string
	first uint64
}

// A gap is a stretch of records that is not there, between the hashes that stand
// before and after it.
type gap struct {
	Range
	prev, hash string
}

func newVerifier(e Evidence) *verifier {
	v := &verifier{e: e, public: e.Public, next: map[uint64]Checkpoint{}}
	v.Intact, v.LastHash = true, zeroHash
	if e.Key != nil {
		v.KeyID = e.Key.ID()
	}
	for _, c := range e.Checkpoints {
		v.next[c.Count] = c
	}
	return v
}

// scan reads lines until the end or the first bad one. It returns what follows
// the last line without a newline, and how many bytes are before that.
func (v *verifier) scan(log io.Reader) (torn []byte, size int64, err error) {
	torn, err = eachLine(log, func(line []byte) bool {
		if problem := v.line(line); problem != "" {
			v.fail(v.LastSeq+1, problem)
			return false
		}
		size += int64(len(line))
		return true
	})
	if errors.Is(err, errLong) {
		v.fail(v.LastSeq+1, errLong.Error())
		err = nil
	}
	return torn, size, err
}

// fail records the first thing wrong with the lines.
func (v *verifier) fail(record uint64, problem string) {
	v.Intact, v.BadRecord = false, record
	v.Problem = fmt.Sprintf("record %d %s", record, problem)
}

// line checks one line, newline included, and returns what is wrong with it.
func (v *verifier) line(b []byte) (problem string) {
	p, problem := parsePlace(b)
	if problem != "" {
		return problem
	}
	first := v.Records == 0
	begins := p.Action == logSegment && p.Segment != nil
	switch {
	case begins && !v.keyed(&p) || !begins && v.mac != nil && !p.by(*v.mac):
		return "was not written by the owner of the key"
	case first && !begins:
		return fmt.Sprintf("is named record %d: the beginning of its segment is missing", p.Seq)
	case begins && p.Segment.Format != format:
		return fmt.Sprintf("names format %d, which this program does not know", p.Segment.Format)
	case begins && !first && p.Segment.Log != v.Log:
		return "begins another log"
	case p.Seq <= v.LastSeq:
		return fmt.Sprintf("is named record %d, which belongs further up", p.Seq)
	case p.Seq != v.LastSeq+1 && !begins:
		return fmt.Sprintf("is named record %d, but record %d should follow here: lines were deleted or moved", p.Seq, v.LastSeq+1)
	case p.Seq == v.LastSeq+1 && p.Prev != v.LastHash:
		return "does not follow from the line above it: lines of two logs were mixed"
	}
	if p.Seq != v.LastSeq+1 {
		v.gaps = append(v.gaps, gap{Range{v.LastSeq + 1, p.Seq - 1}, v.LastHash, p.Prev})
	}
	if problem := v.own(&p); problem != "" {
		return problem
	}
	// One that is not this log's is spoken of at the end.
	if held, ok := v.next[p.Seq]; ok && held.Hash != p.Hash && held.Log == v.Log && v.signs(held) {
		return fmt.Sprintf("is not the one that the checkpoint of %s covers: history was rewritten", held.Time.UTC().Format(time.RFC3339))
	}
	if first {
		v.First, v.FirstSeq, v.firstPrev = p.Time, p.Seq, p.Prev
	} else if p.Time.Before(v.Last) {
		v.ClockBack++
	}
	v.Records++
	v.Last, v.LastSeq, v.LastHash = p.Time, p.Seq, p.Hash
	v.unsigned++
	if p.Action == logCheckpoint {
		v.unsigned = 0
	}
	if v.mac != nil {
		v.Proven = p.Seq
	}
	return ""
}

// keyed takes in whose MACs the lines of a segment have, and checks the first.
func (v *verifier) keyed(p *Entry) bool {
	if v.e.Key == nil {
		return true
	}
	if v.mac = keyOf(append([]Key{*v.e.Key}, v.e.Older...), p.Segment.KeyID); v.mac == nil {
		v.unkeyed = append(v.unkeyed, unkeyed{p.Segment.KeyID, p.Seq})
		return true // if the log has changed its keys since: see settleKeys
	}
	return p.by(*v.mac)
}

// keyOf finds a key by its id.
func keyOf(keys []Key, id string) *Key {
	for i := range keys {
		if keys[i].ID() == id {
			return &keys[i]
		}
	}
	return nil
}

// settleKeys checks, once every line was read, that nothing rests on keys that the
// evidence does not know.
func (v *verifier) settleKeys() bool {
	for _, u := range v.unkeyed {
		// The chain and its later keys vouch for segments with one that was given up.
		if v.mac == nil || !slices.ContainsFunc(v.rekeys, func(r Rekey) bool { return r.FromKeyID == u.keyID }) {
			v.fail(u.first, fmt.Sprintf("was written with key %.16q, not with key %q", u.keyID, v.KeyID))
			return false
		}
	}
	if v.e.Public != nil && !v.vouched && v.foreign > 0 {
		v.fail(v.foreign, "is a checkpoint that was not signed with the public key "+v.e.Public.ID())
		return false
	}
	return true
}

// signers are the keys that the log has had, as far as it was read, and the one that is
// known.
func (v *verifier) signers() []PublicKey {
	all := []PublicKey{v.public, v.signing}
	for _, r := range v.rekeys {
		all = append(all, r.From)
	}
	return all
}

func (v *verifier) signs(signed interface{ SignedBy(PublicKey) bool }) bool {
	return slices.ContainsFunc(v.signers(), signed.SignedBy)
}

// newKeys takes in which key signs from a segment on, which is the one before or one that
// it announced.
func (v *verifier) newKeys(s *Segment) (problem string) {
	known := len(v.rekeys)
	for i, r := range s.Rekeys {
		before := r.From
		if i > 0 {
			before = s.Rekeys[i-1].To
		}
		if i < known && !bytes.Equal(r.Text(), v.rekeys[i].Text()) || r.Log != s.Log || !r.From.equal(before) || !r.signed() {
			return "speaks of a change of keys that the key before did not sign"
		}
	}
	n := len(s.Rekeys)
	switch {
	case n < known:
		return "leaves out a change of keys"
	case n > 0 && (!s.PublicKey.equal(s.Rekeys[n-1].To) || s.KeyID != s.Rekeys[n-1].ToKeyID),
		v.seg != nil && n == known && (!s.PublicKey.equal(v.signing) || s.KeyID != v.seg.KeyID),
		v.seg != nil && n > known && !s.Rekeys[known].From.equal(v.signing):
		return "names other keys than the log has or announced"
	}
	v.rekeys, v.announced, v.signing = s.Rekeys, nil, s.PublicKey
	v.KeyChanges = n
	if v.e.Public != nil {
		v.vouched = slices.ContainsFunc(v.signers()[1:], v.e.Public.equal)
	} else if v.mac != nil {
		v.public, v.vouched = s.PublicKey, true
	}
	return ""
}

// own takes in the log's own lines.
func (v *verifier) own(p *Entry) (problem string) {
	switch p.Action {
	case logSegment:
		if p.Segment == nil {
			return "says nothing about its segment"
		}
		s := p.Segment
		if v.seg != nil && s.Number <= v.seg.Number {
			return fmt.Sprintf("begins segment %d, which belongs further up", s.Number)
		}
		if problem := v.newKeys(s); problem != "" {
			return problem
		}
		v.seg, v.segBegan, v.Log = s, p.Time, s.Log
		v.Segments++
		v.holds, v.removed = s.Holds, nil // the whole of each, repeated
		for _, r := range s.Removed {
			if problem := v.removal(r); problem != "" {
				return problem
			}
		}
	case logCheckpoint:
		c := p.Checkpoint
		if c == nil || c.Log != v.Log || c.Count != p.Seq-1 || c.Hash != p.Prev {
			return "is a checkpoint that does not cover what is before it"
		}
		if !c.SignedBy(v.signing) {
			return "is a checkpoint that was not signed with the public key " + v.signing.ID()
		}
		if !v.vouched {
			if v.foreign == 0 {
				v.foreign = p.Seq
			}
			return ""
		}
		// The line itself says nothing that is not signed.
		v.PublicID = v.signing.ID()
		v.Checkpoints++
		v.Proven = max(v.Proven, c.Count)
	case logHold:
		if p.Hold != nil {
			v.holds = withHold(v.holds, *p.Hold)
		}
	case logRelease:
		if p.Hold != nil {
			v.holds = withoutHold(v.holds, p.Hold.ID)
		}
	case logRekey:
		r := p.Rekey
		if r == nil || r.Log != v.Log || !r.From.equal(v.signing) || !r.signed() {
			return "announces keys, and the log's own did not sign it"
		}
		v.announced = r
	case logRemoved:
		if p.Removed != nil {
			return v.removal(*p.Removed)
		}
	}
	return ""
}

// removal takes in that older segments were removed.
func (v *verifier) removal(r Removed) (problem string) {
	if r.Log != v.Log || !v.signs(r) {
		return "speaks of a removal that was not signed with this log's key"
	}
	v.removed = append(v.removed, r)
	return ""
}

// finish gives the verdicts once every line was read.
func (v *verifier) finish(torn []byte) {
	if !v.Intact {
		return
	}
	if len(torn) > 0 {
		v.fail(v.LastSeq+1, "has no end: a crash tore it, or it was cut")
		return
	}
	if !v.settleKeys() {
		return
	}
	if v.e.Key == nil && v.Records > 0 && v.Checkpoints == 0 {
		// A chain without a signature is one that anybody can write.
		if !v.heldProves() {
			v.Intact, v.BadRecord = false, v.FirstSeq
			v.Problem = "no checkpoint of this public key is in the log, and none that is held covers it: nothing is proven"
			for _, c := range v.e.Checkpoints {
				if v.signs(c) && c.Log == v.Log && c.Count > v.LastSeq {
					v.BadRecord = v.LastSeq + 1
					v.Problem = v.cutOff(c) + ", and nothing that is left is proven"
				}
			}
			return
		}
	}
	for _, g := range v.gaps {
		if v.covered(g) {
			v.Removed = append(v.Removed, g.Range)
			continue
		}
		v.Missing = append(v.Missing, g.Range)
		if v.Problem == "" {
			v.BadRecord = g.First
			v.Problem = fmt.Sprintf("records %d to %d are missing, and the log does not say that it removed them", g.First, g.Last)
		}
	}
	if v.Problem != "" {
		return
	}
	v.checkEnd()
}

// cutOff says that a held checkpoint covers more than there is.
func (v *verifier) cutOff(c Checkpoint) string {
	return fmt.Sprintf("the log ends after record %d, but the checkpoint of %s covers record %d: the end was cut off",
		v.LastSeq, c.Time.UTC().Format(time.RFC3339), c.Count)
}

// heldProves takes the held checkpoints for proof of what they cover.
func (v *verifier) heldProves() bool {
	for _, c := range v.e.Checkpoints {
		if v.signs(c) && c.Log == v.Log && c.Count >= v.FirstSeq && c.Count <= v.LastSeq {
			v.Proven = max(v.Proven, c.Count) // line compared the hash
			v.PublicID = v.public.ID()
		}
	}
	return v.Proven > 0
}

// covered reports whether signed removals account for the whole of a gap. They
// may account for more: a copy of the log can hold what was removed since.
func (v *verifier) covered(g gap) bool {
	for {
		var best Removed
		for _, r := range v.removed {
			if r.First <= g.First && r.Last >= g.First && r.Last > best.Last && (r.First < g.First || r.Prev == g.prev) {
				best = r
			}
		}
		switch {
		case best.Last == 0:
			return false
		case best.Last >= g.Last:
			return best.Last > g.Last || best.Hash == g.hash
		}
		g.First, g.prev = best.Last+1, best.Hash
	}
}

// checkEnd sets Complete: whether anything is known that should follow the last
// line, or should be it.
func (v *verifier) checkEnd() {
	for _, c := range v.e.Checkpoints {
		switch {
		case !v.signs(c):
			v.Problem = "a checkpoint that is held was not signed with this log's public key"
		case v.Log != "" && c.Log != v.Log:
			v.Problem = fmt.Sprintf("a checkpoint that is held is of another log, %.40q", c.Log)
		case c.Count > v.LastSeq:
			v.BadRecord, v.Problem = v.LastSeq+1, v.cutOff(c)
		default:
			v.Checkpoints++
			v.EndBy = "checkpoint"
			continue
		}
		return
	}
	if v.e.Key == nil {
		if v.EndBy == "" {
			v.Problem = "there is no checkpoint from elsewhere to tell where the log should end"
			return
		}
		v.Complete = true
		return
	}
	if v.e.Head == nil {
		if v.EndBy == "" {
			v.Problem = "there is no head file and no checkpoint from elsewhere to tell where the log should end"
			return
		}
		v.Complete = true
		return
	}
	h, ok := parseHead(v.e.Head, *v.e.Key)
	switch {
	case !ok:
		v.Problem = "the head file is damaged or was signed with another key"
	case h.Seq > v.LastSeq:
		v.BadRecord = v.LastSeq + 1
		v.Problem = fmt.Sprintf("the log ends after record %d, but the head file names record %d: the end was cut off", v.LastSeq, h.Seq)
	case h.Seq == v.LastSeq && h.Hash != v.LastHash:
		v.BadRecord = v.LastSeq
		v.Problem = fmt.Sprintf("record %d is not the one the head file names: one of the two was replaced", v.LastSeq)
	default:
		// A head that is behind is what a power cut leaves; the chain itself
		// vouches for the lines after it.
		v.Complete = true
		if v.EndBy == "" {
			v.EndBy = "head"
		}
	}
}
