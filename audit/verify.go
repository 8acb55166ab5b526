package audit

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// A Summary is the verdict on a log.
type Summary struct {
	// Intact says that every line stands as it was written, where it was
	// written, from the first on.
	Intact bool `json:"intact"`

	// Complete says that nothing is missing from the end either, as far as the
	// head file tells. A log that is not intact is never complete.
	Complete bool `json:"complete"`

	// BadLine is the number, from 1, of the first line that is wrong, or that
	// should be there and is not. 0 if nothing is wrong.
	BadLine int `json:"bad_line"`

	// Problem says what is wrong, in a sentence. Empty if nothing is.
	Problem string `json:"problem"`

	Records  int       `json:"records"`   // lines that verified, the genesis record included
	First    time.Time `json:"first"`     // when the first of them was written
	Last     time.Time `json:"last"`      // and the last
	LastHash string    `json:"last_hash"` // hash of the last of them
	KeyID    string    `json:"key_id"`    // id of the key they were verified with
}

// Files that belong to the log at path.
func headPath(path string) string { return path + ".head" }
func keyPath(path string) string  { return path + ".key" }

// VerifyFile verifies the log at path with the head and key files beside it. An
// error means that they could not be read; what they say is in the Summary.
func VerifyFile(path string) (Summary, error) {
	key, err := ReadKey(keyPath(path))
	if err != nil {
		return Summary{}, err
	}
	// The head first: a log that grows meanwhile is then ahead of it, never behind.
	head, err := os.ReadFile(headPath(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Summary{}, fmt.Errorf("read audit head: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return Summary{}, fmt.Errorf("read audit log: %w", err)
	}
	defer f.Close()
	return Verify(f, head, key)
}

// Verify checks every line of a log against key, and its end against the
// contents of its head file; a nil head leaves the log's completeness unproven.
// It needs nothing else and may run anywhere. It holds one line in memory. The
// error is only ever a failure to read log.
func Verify(log io.Reader, head []byte, key Key) (Summary, error) {
	end, err := scan(log, key)
	if err != nil {
		return Summary{}, err
	}
	s := end.Summary
	if !s.Intact {
		return s, nil
	}
	if len(end.torn) > 0 {
		s.fail(s.Records+1, "has no end: a crash tore it, or it was cut")
		return s, nil
	}
	s.checkHead(head, key)
	return s, nil
}

// checkHead sets Complete.
func (s *Summary) checkHead(data []byte, key Key) {
	if data == nil {
		s.Problem = "there is no head file to tell where the log should end"
		return
	}
	h, ok := parseHead(data, key)
	switch last := uint64(s.Records); {
	case !ok:
		s.Problem = "the head file is damaged or was signed with another key"
	case h.Seq > last:
		s.BadLine = s.Records + 1
		s.Problem = fmt.Sprintf("the log ends after line %d, but the head file names line %d: the end was cut off", last, h.Seq)
	case h.Seq == last && h.Hash != s.LastHash:
		s.BadLine = s.Records
		s.Problem = fmt.Sprintf("line %d is not the one the head file names: one of the two was replaced", last)
	default:
		// A head that is behind is what a power cut leaves; the chain itself
		// vouches for the lines after it.
		s.Complete = true
	}
}

// fail records the first thing wrong.
func (s *Summary) fail(line int, problem string) {
	s.Intact, s.BadLine = false, line
	s.Problem = fmt.Sprintf("line %d %s", line, problem)
}

const (
	hashHex    = 64
	hashField  = `,"hash":"`
	lineSuffix = len(hashField) + hashHex + len(`"}`) + 1 // with the newline

	// lineFrame bounds what a line holds besides its fields.
	lineFrame = len(`{"seq":18446744073709551615,"time":"2006-01-02T15:04:05.999999999Z",`) +
		len(`,"prev":""`) + hashHex + lineSuffix
)

var zeroHash = string(bytes.Repeat([]byte("0"), hashHex))

// scanned is what reading a log to its end found.
type scanned struct {
	Summary
	size int64  // bytes of the lines that verified
	torn []byte // what follows them without a newline, if the log ends so
}

// scan reads lines until the end or the first bad one.
func scan(log io.Reader, key Key) (*scanned, error) {
	end := &scanned{Summary: Summary{Intact: true, LastHash: zeroHash, KeyID: key.ID()}}
	r := bufio.NewReaderSize(log, LineMax)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case err == io.EOF:
			end.torn = bytes.Clone(line)
			return end, nil
		case err == bufio.ErrBufferFull:
			end.fail(end.Records+1, fmt.Sprintf("is longer than %d bytes", LineMax))
			return end, nil
		case err != nil:
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		if problem := end.next(line, key); problem != "" {
			end.fail(end.Records+1, problem)
			return end, nil
		}
		end.size += int64(len(line))
	}
}

// next checks one line, newline included, and returns what is wrong with it.
func (s *scanned) next(line []byte, key Key) (problem string) {
	if len(line) < lineSuffix {
		return "is not a line of an audit log"
	}
	body, suffix := line[:len(line)-lineSuffix], line[len(line)-lineSuffix:]
	if !bytes.HasPrefix(suffix, []byte(hashField)) || !bytes.HasSuffix(suffix, []byte("\"}\n")) {
		return "is not a line of an audit log"
	}
	hash := suffix[len(hashField) : len(hashField)+hashHex]

	var f struct {
		Seq    uint64    `json:"seq"`
		Time   time.Time `json:"time"`
		Prev   string    `json:"prev"`
		Action string    `json:"action"`
		Format int       `json:"format"`
		KeyID  string    `json:"key_id"`
	}
	parsed := json.Unmarshal(line, &f) == nil
	if parsed && f.Action == actionGenesis && f.KeyID != "" && f.KeyID != s.KeyID {
		return fmt.Sprintf("was written with key %.16q, not with key %q", f.KeyID, s.KeyID)
	}
	want := hex.EncodeToString(key.mac("line", body))
	if !hmac.Equal(hash, []byte(want)) {
		return "was changed: its hash does not match its contents"
	}
	// From here on the line is one that the key's owner wrote, so whatever is
	// wrong is about where it stands.
	first := s.Records == 0
	switch {
	case !parsed:
		return "is not JSON"
	case first != (f.Action == actionGenesis):
		if first {
			return fmt.Sprintf("is record %d: the log's beginning is missing", f.Seq)
		}
		return "begins another log"
	case first && f.Format != format:
		return fmt.Sprintf("names format %d, which this program does not know", f.Format)
	case f.Seq <= uint64(s.Records):
		return fmt.Sprintf("is record %d, which belongs further up", f.Seq)
	case f.Seq != uint64(s.Records)+1:
		return fmt.Sprintf("is record %d, but record %d should follow here: lines were deleted or moved", f.Seq, s.Records+1)
	case f.Prev != s.LastHash:
		return "does not follow from the line above it: lines of two logs were mixed"
	}
	s.Records++
	s.Last, s.LastHash = f.Time, want
	if first {
		s.First = f.Time
	}
	return ""
}
