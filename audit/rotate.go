package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Rekey says that a log goes on with other keys: both of them, from the next segment on.
// The key before signs it, so that whoever trusts that one can follow, and the new one,
// to show that somebody has it.
type Rekey struct {
	Log       string    `json:"log_id"`
	From      PublicKey `json:"from"`
	To        PublicKey `json:"to"`
	FromKeyID string    `json:"from_key_id"` // of the MACs
	ToKeyID   string    `json:"to_key_id"`
	Time      time.Time `json:"time"`
	Reason    string    `json:"reason,omitempty"`
	Signature []byte    `json:"signature"` // by From
	Accepted  []byte    `json:"accepted"`  // by To
}

// rekeysMax bounds how often the keys of one log change: each change is repeated in every
// segment after it.
const rekeysMax = 50

// Text is what the signatures of r sign.
func (r Rekey) Text() []byte {
	return fmt.Appendf(nil, "bailey audit rekey 1\n%s\n%x\n%x\n%s\n%s\n%s\n%s",
		r.Log, []byte(r.From), []byte(r.To), r.FromKeyID, r.ToKeyID, r.Time.UTC().Format(time.RFC3339Nano), r.Reason)
}

// signed reports whether both keys signed r.
func (r Rekey) signed() bool {
	return r.From.verify(r.Text(), r.Signature) && r.To.verify(r.Text(), r.Accepted)
}

// Keys that a rotation has made and that are not in their places yet.
func nextPath(path string) string { return path + ".next" }

// RotateKeys has the log go on with new keys. The old signing key is destroyed; the old
// key of the MACs is kept beside the log, under its name and its id, for whoever is to
// prove or find old records: without that file they are proven by the checkpoints alone.
func (l *Log) RotateKeys(actor, reason string) error {
	l.keyMu.Lock() // what was encoded with the old key is written before
	defer l.keyMu.Unlock()
	l.commitMu.Lock()
	defer l.commitMu.Unlock()
	l.commit()
	switch {
	case l.failed != nil:
		return l.failed
	case l.trouble != nil:
		return l.trouble
	case len(l.rekeys) >= rekeysMax:
		return fmt.Errorf("the keys of one audit log change at most %d times: move all files whose names begin with %s aside to begin a new one", rekeysMax, l.path)
	case len(reason) > holdReasonMax:
		return fmt.Errorf("reason: at most %d bytes", holdReasonMax)
	}
	key, err := openKey(nextPath(keyPath(l.path)), true)
	if err != nil {
		return err
	}
	next, err := openSigner(nextPath(signPath(l.path)), true)
	if err != nil {
		return err
	}
	mask := masker{l.key}
	r := Rekey{
		Log: l.segment.Log, From: l.signer.public(), To: next.public(), FromKeyID: l.key.ID(), ToKeyID: key.ID(),
		Time: l.Clock().UTC(), Reason: mask.text(reason),
	}
	r.Signature, r.Accepted = l.signer.sign(r.Text()), next.sign(r.Text())
	c := l.chain()
	if err := c.addOwn(r.Time, Fields{Action: logRekey, Actor: mask.text(actor), Detail: r.Reason, Rekey: &r}); err != nil {
		return err
	}
	if err := l.store(c); err != nil {
		return err
	}
	if err := l.settle(); err != nil {
		return err // it is announced; the next start finishes it
	}
	return l.takeUp(r, key, next)
}

// takeUp goes on with keys that the log has announced. The caller holds commitMu.
//
// A crash here leaves an announcement, and perhaps a segment that begins with the new
// keys: the next start finishes it.
func (l *Log) takeUp(r Rekey, key Key, next signer) error {
	now := l.Clock()
	if err := l.sign(now); err != nil {
		return err
	}
	oldKey, oldSigner, oldRekeys := l.key, l.signer, l.rekeys
	l.key, l.signer, l.rekeys = key, next, append(l.rekeys[:len(l.rekeys):len(l.rekeys)], r)
	if err := l.turnOver(now); err != nil {
		l.key, l.signer, l.rekeys = oldKey, oldSigner, oldRekeys
		return err
	}
	if err := l.placeKeys(oldKey); err != nil {
		l.failed = err
		return err
	}
	l.Logger.Info("the audit log goes on with new keys", "key_id", key.ID(), "public_key", next.public().ID())
	return nil
}

// placeKeys puts new keys in their places, once a segment begins with them. It does again
// what a crash left undone.
func (l *Log) placeKeys(old Key) error {
	// The head is signed anew before the key that signed it is gone from its place.
	b, err := os.ReadFile(headPath(l.path))
	if err == nil {
		if _, ok := parseHead(b, l.key); !ok {
			h, ok := parseHead(b, old)
			if !ok {
				return errors.New("audit head: damaged, or signed with another key")
			}
			err = replaceHead(headPath(l.path), h, l.key)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit head: %w", err)
	}
	var moves [][2]string
	if exists(nextPath(keyPath(l.path))) {
		moves = append(moves, [2]string{keyPath(l.path), retiredPath(l.path, old.ID())}, [2]string{nextPath(keyPath(l.path)), keyPath(l.path)})
	}
	moves = append(moves, [2]string{nextPath(signPath(l.path)), signPath(l.path)}) // over the old one
	for _, move := range moves {
		if err := os.Rename(move[0], move[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put audit keys in their places: %w", err)
		}
	}
	if err := writeNew(publicPath(l.path), l.signer.public().PEM(), 0o644); err != nil {
		return fmt.Errorf("write audit public key: %w", err)
	}
	return syncDir(filepath.Dir(l.path))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func retiredPath(path, id string) string { return keyPath(path) + "." + id }

// ReadKeys reads the key in a file, and those beside it that the log has had before.
func ReadKeys(path string) (key Key, older []Key, err error) {
	if key, err = ReadKey(path); err != nil {
		return key, nil, err
	}
	files, _ := filepath.Glob(globEscape(path) + ".*")
	for _, file := range files {
		id := strings.TrimPrefix(file, path+".")
		k, err := ReadKey(file)
		if err == nil && (k.ID() == id || file == nextPath(path)) {
			older = append(older, k)
		}
	}
	return key, older, nil
}

// recoverKeys puts keys in their places if the newest segment begins with them, and a
// crash kept them from there.
func (l *Log) recoverKeys() error {
	begins, err := l.newestSegment()
	if err != nil || begins == nil {
		return err
	}
	key, err := ReadKey(nextPath(keyPath(l.path)))
	keyed := err == nil && key.ID() == begins.KeyID
	next, err := readSigner(nextPath(signPath(l.path)))
	signs := err == nil && next.public().equal(begins.PublicKey)
	if !keyed && !signs {
		return nil // there are none, or they are announced at most: see finishRotation
	}
	old, err := ReadKey(keyPath(l.path))
	switch {
	case !keyed && err != nil:
		return err
	case !keyed:
		key = old
	case err != nil:
		old = key // it has been moved
	}
	if !signs {
		if next, err = readSigner(signPath(l.path)); err != nil {
			return err
		}
	}
	l.key, l.signer = key, next
	return l.placeKeys(old)
}

// finishRotation takes up keys that the log has announced, if it has, and removes others.
// The caller is about to use the log.
func (l *Log) finishRotation(announced *Rekey) error {
	keyFile, signFile := nextPath(keyPath(l.path)), nextPath(signPath(l.path))
	if !exists(keyFile) && !exists(signFile) {
		return nil
	}
	key, err := ReadKey(keyFile)
	next, serr := readSigner(signFile)
	if err == nil && serr == nil && announced != nil && announced.ToKeyID == key.ID() && announced.To.equal(next.public()) {
		return l.takeUp(*announced, key, next)
	}
	for _, file := range []string{keyFile, signFile} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove audit keys that were never used: %w", err)
		}
	}
	return nil
}

// newestSegment reads what the newest segment says of itself, if there is one.
func (l *Log) newestSegment() (*Segment, error) {
	paths, err := closedPaths(l.path)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	for _, path := range slices.Backward(append(paths, l.path)) {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("open audit log: %w", err)
		}
		var found *Segment
		_, err = eachLine(f, func(line []byte) bool {
			if e, problem := parseLine(line); problem == "" {
				found = e.Segment
			}
			return false
		})
		_ = f.Close()
		if err != nil && !errors.Is(err, errLong) || found != nil {
			return found, err
		}
	}
	return nil, nil
}
