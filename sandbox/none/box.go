package none

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// A box is a process and what it has started.
type box struct {
	// Static once started.
	driver  *Driver
	spec    sandbox.Spec
	home    string // stands in for sandbox.HomePath; "" if that is not mentioned
	marker  string // a variable by which the box's processes are known wherever they went
	stdio   *sandbox.Stdio
	process *os.Process

	ended chan struct{} // closed when the process and all we know of it are gone
	exit  sandbox.Exit  // written before ended is closed

	mu    sync.Mutex
	cause sandbox.Cause // why we ended the box, the first reason counting
}

// Stdio implements [sandbox.Box].
func (b *box) Stdio() (io.WriteCloser, io.Reader) { return b.stdio.Streams() }

// Wait implements [sandbox.Box].
func (b *box) Wait() sandbox.Exit {
	<-b.ended
	return b.exit
}

// Stop implements [sandbox.Box].
func (b *box) Stop(ctx context.Context) error {
	b.end(sandbox.CauseStopped)
	select {
	case <-b.ended:
		b.stdio.Close()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop box %s: %w", b.spec.ID, context.Cause(ctx))
	}
}

// Stats implements [sandbox.Box]. Nothing is measured.
func (b *box) Stats() (sandbox.Stats, error) {
	select {
	case <-b.ended:
		return sandbox.Stats{}, errors.New("the box has ended")
	default:
		return sandbox.Stats{}, nil
	}
}

func (b *box) end(cause sandbox.Cause) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == "" {
		b.cause = cause
		_ = b.process.Kill() // no error if it has ended
	}
}

// run starts the process, says so on launched, and sees it to its end.
func (b *box) run(launched chan<- error) {
	// The kernel ends the process when the thread that started it ends, so the thread
	// must be there for as long.
	runtime.LockOSThread()

	cmd := b.command()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	var err error
	if b.stdio, err = sandbox.NewStdio(cmd); err == nil {
		err = b.launch(cmd)
		b.stdio.Started(b.spec.Stderr)
		if err != nil {
			b.stdio.Close()
		}
	}
	if err != nil {
		launched <- err
		return
	}
	b.process = cmd.Process
	launched <- nil

	lifetime := time.AfterFunc(b.spec.Limits.Lifetime, func() { b.end(sandbox.CauseTime) })
	_ = cmd.Wait() // its status says it too
	lifetime.Stop()
	b.exit = b.explain(cmd.ProcessState.Sys().(syscall.WaitStatus))
	if err := b.tearDown(); err != nil {
		b.driver.log.Error("something of a box is left on the host", "box", b.spec.ID, "error", err)
	}
	close(b.ended)
}

func (b *box) launch(cmd *exec.Cmd) error {
	started, err := b.driver.change(cmd, b.spec, b.paths())
	if err != nil {
		return err
	}
	err = cmd.Start()
	if failed := started(); err == nil && failed != nil {
		_ = cmd.Process.Kill() // no error if it has ended
		_ = cmd.Wait()         // its status says nothing more
		return failed
	}
	return err
}

func (b *box) explain(status syscall.WaitStatus) sandbox.Exit {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.cause == sandbox.CauseTime:
		return sandbox.Exit{Cause: b.cause, Detail: fmt.Sprintf("it had run for %v", b.spec.Limits.Lifetime)}
	case b.cause != "":
		return sandbox.Exit{Cause: b.cause}
	case status.Signaled():
		return sandbox.Exit{Cause: sandbox.CauseCrashed, Detail: fmt.Sprintf("killed by signal %q", status.Signal())}
	}
	return sandbox.Exit{Cause: sandbox.CauseExited, Code: status.ExitStatus(), Detail: b.stdio.LastLine()}
}

// tearDown ends what the process left running and removes what we made for it.
func (b *box) tearDown() error {
	errs := []error{killMarked(b.marker)}
	if b.home != "" {
		errs = append(errs, os.RemoveAll(b.home))
	}
	if b.driver.notes != "" && errs[0] == nil {
		errs = append(errs, os.RemoveAll(b.driver.notePath(b.spec.ID)))
	}
	b.driver.claims.Give(b.spec.ID)
	return errors.Join(errs...)
}

// killMarked kills the processes that carry a box's marker. One that dropped it is beyond
// us.
func killMarked(marker string) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		found := 0
		files, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, file := range files {
			pid, err := strconv.Atoi(strings.Split(file, "/")[2])
			if err != nil {
				continue
			}
			// Held first, so that what is killed is what was looked at.
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			env, err := os.ReadFile(file)
			if err == nil && bytes.Contains(append(env, 0), []byte(marker+"\x00")) {
				found++
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may be gone already
			}
			unix.Close(fd)
		}
		if found == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes live on", found)
		}
	}
}
