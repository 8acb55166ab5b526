package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel of a box can be told.
const (
	tellPause      = "containerManager.Pause"      // stop every task; returns when all have
	tellResume     = "containerManager.Resume"     // and go on
	tellCheckpoint = "containerManager.Checkpoint" // write the state to the files
)

// tell has the box's kernel do something, over the socket that runsc would use. (To
// start runsc for it takes five times as long as what it does.) A question is one JSON
// object, with files beside its first byte, and the answer another; see package urpc of
// gVisor, whose version is that of our module.
func (b *box) tell(ctx context.Context, method string, arg any, files ...*os.File) error {
	question, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return err
	}
	conn, err := b.dial(ctx)
	if err != nil {
		return fmt.Errorf("reach the box's kernel: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, file := range files {
			fds[i] = int(file.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	var answer struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
	}
	_, _, err = conn.WriteMsgUnix(question, rights, nil)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("ask the box's kernel: %w", err)
	case !answer.Success:
		return errors.New(answer.Err)
	}
	return nil
}

// dial connects to the box's kernel, by a short name: a socket's path has room for
// about a hundred bytes.
func (b *box) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(filepath.Join(b.dir, "state"))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/runsc-%s.sock", dir.Fd(), b.container))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
