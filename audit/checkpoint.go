package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// A Checkpoint signs everything a log held when it was made: whoever keeps one
// elsewhere can later tell whether any of it was changed or cut off. Its file is
// the JSON of this type; what is signed is [Checkpoint.Text].
type Checkpoint struct {
	Log       string    `json:"log_id"`
	Count     uint64    `json:"count"` // the number of the last record it covers
	Hash      string    `json:"hash"`  // and that record's hash
	Time      time.Time `json:"time"`  // of the host that signed
	Key       string    `json:"key_id"`
	Signature []byte    `json:"signature"`
}

// Text is what the signature of c signs, with no newline after the last line:
//
//	bailey audit checkpoint 1
//	<log id>
//	<count>
//	<hash>
//	<time, RFC 3339 in UTC>
func (c Checkpoint) Text() []byte {
	return fmt.Appendf(nil, "bailey audit checkpoint 1\n%s\n%d\n%s\n%s", c.Log, c.Count, c.Hash, c.Time.UTC().Format(time.RFC3339Nano))
}

// SignedBy reports whether the owner of key signed c.
func (c Checkpoint) SignedBy(key PublicKey) bool { return key.verify(c.Text(), c.Signature) }

func (s signer) checkpoint(log string, count uint64, hash string, at time.Time) Checkpoint {
	c := Checkpoint{Log: log, Count: count, Hash: hash, Time: at.UTC(), Key: s.public().ID()}
	c.Signature = s.sign(c.Text())
	return c
}

// checkpointMax bounds a checkpoint's file in bytes.
const checkpointMax = 4 << 10

// ParseCheckpoint reads a checkpoint's file. It does not check the signature.
func ParseCheckpoint(b []byte) (Checkpoint, error) {
	var c Checkpoint
	if len(b) > checkpointMax || json.Unmarshal(b, &c) != nil || c.Log == "" || len(c.Hash) != hashHex {
		return Checkpoint{}, errors.New("not a checkpoint of an audit log")
	}
	return c, nil
}

// ReadCheckpoint reads the checkpoint in a file.
func ReadCheckpoint(path string) (Checkpoint, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read audit checkpoint: %w", err)
	}
	c, err := ParseCheckpoint(b)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%s is %w", path, err)
	}
	return c, nil
}

// file is c as its file holds it.
func (c Checkpoint) file() []byte {
	b, _ := json.Marshal(c) // plain fields: cannot fail
	return append(b, '\n')
}

// A Removed says that old segments were removed by the log's own retention: it
// stands for them. It is signed like a checkpoint.
type Removed struct {
	Log          string    `json:"log_id"`
	FirstSegment int       `json:"first_segment"`
	LastSegment  int       `json:"last_segment"`
	First        uint64    `json:"first"` // number of the first record removed
	Last         uint64    `json:"last"`
	Prev         string    `json:"prev"` // hash of the record before the first
	Hash         string    `json:"hash"` // hash of the last
	From         time.Time `json:"from"`
	To           time.Time `json:"to"`
	Bytes        int64     `json:"bytes"`
	Rule         string    `json:"rule"` // how old a record had to be
	Signature    []byte    `json:"signature"`
}

// Text is what the signature of r signs.
func (r Removed) Text() []byte {
	return fmt.Appendf(nil, "bailey audit removal 1\n%s\n%d %d\n%d %d\n%s\n%s\n%s\n%s\n%d\n%s",
		r.Log, r.FirstSegment, r.LastSegment, r.First, r.Last, r.Prev, r.Hash,
		r.From.UTC().Format(time.RFC3339Nano), r.To.UTC().Format(time.RFC3339Nano), r.Bytes, r.Rule)
}

// SignedBy reports whether the owner of key signed r.
func (r Removed) SignedBy(key PublicKey) bool { return key.verify(r.Text(), r.Signature) }

// join adds b, which directly follows a, if it does.
func (a Removed) join(b Removed) (Removed, bool) {
	if a.Last+1 != b.First || a.Hash != b.Prev {
		return a, false
	}
	a.LastSegment, a.Last, a.Hash, a.To, a.Rule = b.LastSegment, b.Last, b.Hash, b.To, b.Rule
	a.Bytes += b.Bytes
	return a, true
}
