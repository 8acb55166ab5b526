package audit

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const format = 2

const (
	hashHex    = 64
	macHex     = 32
	hashField  = `,"hash":"`
	macField   = `","mac":"`
	lineSuffix = len(hashField) + hashHex + len(macField) + macHex + len(`"}`) + 1 // with the newline

	// lineFrame bounds what a line holds besides its fields.
	lineFrame = len(`{"seq":18446744073709551615,"time":"2006-01-02T15:04:05.999999999Z",`) +
		len(`,"prev":""`) + hashHex + lineSuffix
)

var zeroHash = string(bytes.Repeat([]byte("0"), hashHex))

// A Line is one line of a log as sinks get it.
type Line struct {
	Seq    uint64
	Time   time.Time
	Action string
	JSON   []byte // the whole line, without its newline
	Hash   string
}

// A chain puts lines together. Its zero place is the beginning of a log.
type chain struct {
	key  Key
	seq  uint64 // of the last line
	hash string // of the last line; zeroHash before the first

	buf    []byte // the lines added since it was made
	lines  []Line
	signed *Checkpoint // the newest among them
}

// add appends a line with these fields, the inside of a JSON object.
func (c *chain) add(at time.Time, action string, fields []byte) {
	c.seq++
	start := len(c.buf)
	c.buf = append(c.buf, `{"seq":`...)
	c.buf = strconv.AppendUint(c.buf, c.seq, 10)
	c.buf = append(c.buf, `,"time":"`...)
	c.buf = at.UTC().AppendFormat(c.buf, time.RFC3339Nano)
	c.buf = append(c.buf, `",`...)
	c.buf = append(c.buf, fields...)
	c.buf = append(c.buf, `,"prev":"`...)
	c.buf = append(c.buf, c.hash...)
	c.buf = append(c.buf, '"')
	c.hash = hashOf(c.buf[start:])
	c.buf = append(c.buf, hashField...)
	c.buf = append(c.buf, c.hash...)
	c.buf = append(c.buf, macField...)
	c.buf = append(c.buf, c.key.lineMAC(c.hash)...)
	c.buf = append(c.buf, "\"}\n"...)
	c.lines = append(c.lines, Line{Seq: c.seq, Time: at, Action: action, JSON: c.buf[start : len(c.buf)-1], Hash: c.hash})
}

// addOwn appends one of the log's own lines.
func (c *chain) addOwn(at time.Time, f Fields) error {
	b, err := f.encode()
	if err == nil {
		c.add(at, f.Action, b)
	}
	return err
}

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

func (k Key) lineMAC(hash string) string {
	return hex.EncodeToString(k.mac("line", []byte(hash))[:macHex/2])
}

// An Entry is a line, read.
type Entry struct {
	Fields
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Prev string    `json:"prev"`
	Hash string    `json:"hash"`
	MAC  string    `json:"mac"`

	Raw []byte `json:"-"` // the line as it stands, without its newline
}

// What can be wrong with a line by itself.
const (
	notLine = "is not a line of an audit log"
	notJSON = "is not JSON of an audit log"
	changed = "was changed: its hash does not match its contents"
)

// splitLine takes the hash and the MAC off a line, newline included, and checks the
// hash. Whose line it is, the MAC says.
func splitLine(line []byte) (hash, mac, problem string) {
	if len(line) < lineSuffix {
		return "", "", notLine
	}
	body, suffix := line[:len(line)-lineSuffix], line[len(line)-lineSuffix:]
	rest := suffix[len(hashField)+hashHex:]
	if !bytes.HasPrefix(suffix, []byte(hashField)) || !bytes.HasPrefix(rest, []byte(macField)) || !bytes.HasSuffix(rest, []byte("\"}\n")) {
		return "", "", notLine
	}
	hash = string(suffix[len(hashField) : len(hashField)+hashHex])
	if hashOf(body) != hash {
		return "", "", changed
	}
	return hash, string(rest[len(macField) : len(macField)+macHex]), ""
}

// parseLine reads a line. problem says what makes it none, or a changed one.
func parseLine(line []byte) (e Entry, problem string) {
	hash, mac, problem := splitLine(line)
	if problem != "" {
		return e, problem
	}
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		return e, notJSON
	}
	// What was hashed is what stands at the end, whatever else the line names so.
	e.Hash, e.MAC = hash, mac
	return e, ""
}

// parsePlace is parseLine for whoever only asks where a line stands: of lines that
// are not the log's own nothing else is read, which takes half the time.
func parsePlace(line []byte) (e Entry, problem string) {
	hash, mac, problem := splitLine(line)
	if problem != "" {
		return e, problem
	}
	var place struct {
		Seq    uint64    `json:"seq"`
		Time   time.Time `json:"time"`
		Action string    `json:"action"`
		Prev   string    `json:"prev"`
	}
	if json.Unmarshal(line, &place) != nil || place.Action == "" {
		return e, notJSON
	}
	if strings.HasPrefix(place.Action, ownPrefix) {
		return parseLine(line)
	}
	e.Seq, e.Time, e.Action, e.Prev, e.Hash, e.MAC = place.Seq, place.Time, place.Action, place.Prev, hash, mac
	return e, ""
}

// by reports whether the owner of key wrote the line.
func (p *Entry) by(key Key) bool { return hmac.Equal([]byte(p.MAC), []byte(key.lineMAC(p.Hash))) }

// errLong is a line that is longer than LineMax.
var errLong = fmt.Errorf("is longer than %d bytes", LineMax)

// eachLine calls do with every line of r, newline included, until it returns
// false. torn is what follows the last newline. The line is good until the next.
func eachLine(r io.Reader, do func(line []byte) (more bool)) (torn []byte, err error) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, LineMax+1)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i+1], nil
		}
		if atEOF {
			return len(data), data, bufio.ErrFinalToken
		}
		return 0, nil, nil
	})
	for s.Scan() {
		line := s.Bytes()
		if len(line) == 0 || line[len(line)-1] != '\n' {
			torn = bytes.Clone(line)
			break
		}
		if !do(line) {
			return nil, nil
		}
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, errLong
	} else if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return torn, nil
}
