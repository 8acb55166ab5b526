package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A Request asks the process that has a log open to do something with it. It is a
// file beside the log, so that whoever may write there, and nobody else, can ask.
type Request struct {
	Actor   string `json:"actor"`
	Hold    *Hold  `json:"hold,omitempty"`    // place it
	Release string `json:"release,omitempty"` // the id of a hold to lift
	Reason  string `json:"reason,omitempty"`  // of the release, or of new keys
	Sign    bool   `json:"sign,omitempty"`    // a checkpoint, now
	Rekey   bool   `json:"rekey,omitempty"`   // new keys, from now on
}

const (
	requestInfix   = ".request-"
	requestRefused = ".refused"
	requestMax     = 64 << 10
)

// Ask leaves a request for the process that has the log at path open, and returns
// the request's file. The process takes it within about a second: the file is then
// gone, or its name ends in ".refused" and it holds the reason.
func Ask(path string, r Request) (file string, err error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".asking-*")
	if err != nil {
		return "", fmt.Errorf("ask the owner of the audit log: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	file = strings.Replace(f.Name(), ".asking-", requestInfix, 1)
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("ask the owner of the audit log: %w", err)
	}
	return file, nil
}

// takeRequests does what was asked, or says why not.
func (l *Log) takeRequests() {
	files, _ := filepath.Glob(globEscape(l.path) + requestInfix + "*")
	for _, file := range files {
		if strings.HasSuffix(file, requestRefused) {
			continue
		}
		if err := l.take(file); err != nil {
			l.Logger.Warn("audit request refused", "file", file, "error", err)
			if os.WriteFile(file, []byte(err.Error()+"\n"), 0o600) != nil || os.Rename(file, file+requestRefused) != nil {
				_ = os.Remove(file)
			}
			continue
		}
		_ = os.Remove(file)
	}
}

func (l *Log) take(file string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > requestMax {
		return errors.New("not a request")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var r Request
	if err := json.Unmarshal(b, &r); err != nil {
		return errors.New("not a request")
	}
	switch {
	case r.Hold != nil:
		return l.Hold(r.Actor, *r.Hold)
	case r.Release != "":
		return l.Release(r.Actor, r.Release, r.Reason)
	case r.Sign:
		_, err := l.Checkpoint()
		return err
	case r.Rekey:
		return l.RotateKeys(r.Actor, r.Reason)
	}
	return errors.New("asks for nothing")
}

// globEscape makes path match itself.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
