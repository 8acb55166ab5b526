package verify

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// host is the side outside the boxes.
type host struct {
	options Options
	report  sandbox.Report // what the backend says of itself
	dir     string
	lab     *Lab
	bait    bait
	boxes   int
	shared  map[bool]*box // by whether they have a network

	canary    *exec.Cmd
	died      chan struct{} // closed when the canary is dead
	listeners []io.Closer

	mu    sync.Mutex
	heard []string // what came in at the bait's sockets since the last check began
}

// bait is what lies outside of the boxes for a probe to get at.
type bait struct {
	file     string // holds secret; every user may read it
	private  string // holds secret; only its owner may
	script   string // a world-writable file
	pid      int    // a process with secret in its environment
	socket   string // a unix socket
	abstract string // the name of a socket without a file
	port     string // TCP, on the host's loopback
	secret   string
}

// facts are what a prober is told.
type facts struct {
	File     string `json:"file"`
	Private  string `json:"private"`
	Script   string `json:"script"`
	PID      int    `json:"pid"`
	Socket   string `json:"socket"`
	Abstract string `json:"abstract"`
	Port     string `json:"port"`

	// Secret is half of what must not be found, so that the probe's own memory and
	// its question do not hold it.
	SecretHead, SecretTail string

	Isolation sandbox.Isolation `json:"isolation"`
	Limits    map[string]sandbox.Enforcement

	Lab labFacts `json:"lab"`
}

func (h *host) facts() facts {
	half := len(h.bait.secret) / 2
	f := facts{
		File: h.bait.file, Private: h.bait.private, Script: h.bait.script, PID: h.bait.pid, Socket: h.bait.socket,
		Abstract: h.bait.abstract, Port: h.bait.port,
		SecretHead: h.bait.secret[:half], SecretTail: h.bait.secret[half:],
		Isolation: h.report.Isolation, Limits: h.report.Limits,
	}
	if h.lab != nil {
		f.Lab = h.lab.facts()
	}
	return f
}

// planted is a link in every work folder that leads to the bait on the host.
const planted = "planted"

// canarySecret is the variable that holds the secret in the canary's environment.
const canarySecret = "ANTHROPIC_ENVIRONMENT_KEY"

// layBait puts out what probes are to get at.
func layBait(o Options, r sandbox.Report) (_ *host, err error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	// Every user may come here: what keeps a box out is to be its walls, not a mode.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	h := &host{options: o, report: r, dir: dir, lab: o.Lab, shared: make(map[bool]*box)}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	b := &h.bait
	b.secret = marker("secret")
	b.file, b.private, b.script = filepath.Join(dir, "bait"), filepath.Join(dir, "private"), filepath.Join(dir, "script")
	for name, mode := range map[string]os.FileMode{b.file: 0o644, b.private: 0o600, b.script: 0o666} {
		if err := os.WriteFile(name, []byte(b.secret+"\n"), mode); err != nil {
			return nil, err
		}
		if err := os.Chmod(name, mode); err != nil { // whatever our umask is
			return nil, err
		}
	}
	if err := h.letCanaryOut(); err != nil {
		return nil, err
	}
	b.socket, b.abstract = filepath.Join(dir, "socket"), marker("socket")
	for _, at := range []struct{ network, address string }{{"unix", b.socket}, {"unix", "@" + b.abstract}, {"tcp", "127.0.0.1:0"}} {
		l, err := net.Listen(at.network, at.address)
		if err != nil {
			return nil, err
		}
		h.listeners = append(h.listeners, l)
		if at.network == "tcp" {
			_, b.port, _ = net.SplitHostPort(l.Addr().String())
		}
		go h.listen(l)
	}
	return h, os.Chmod(b.socket, 0o777)
}

// letCanaryOut starts a process for probes to get at, unless there is one.
func (h *host) letCanaryOut() error {
	if h.bait.pid != 0 && h.canaryLives() {
		return nil
	}
	h.canary = exec.Command("/bin/sh", "-c", "while :; do sleep 3600; done")
	h.canary.Env = []string{canarySecret + "=" + h.bait.secret, "PATH=/usr/bin:/bin"}
	// In a group of its own, with which its sleep is killed.
	h.canary.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.canary.Start(); err != nil {
		return err
	}
	h.bait.pid = h.canary.Process.Pid
	h.died = make(chan struct{})
	go func(canary *exec.Cmd, died chan struct{}) {
		_ = canary.Wait()
		close(died)
	}(h.canary, h.died)
	return nil
}

// canaryLives reports whether it was not killed. A probe has answered by now, so a
// moment is enough for the news.
func (h *host) canaryLives() bool {
	select {
	case <-h.died:
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

// listen greets whoever comes with the secret.
func (h *host) listen(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		h.hear(fmt.Sprintf("a connection at the host's %s socket %s", l.Addr().Network(), strings.TrimSuffix(l.Addr().String(), h.bait.abstract)))
		_, _ = io.WriteString(conn, h.bait.secret+"\n")
		conn.Close()
	}
}

func (h *host) hear(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.heard) < 100 {
		h.heard = append(h.heard, what)
	}
}

// forget begins a new check: nothing was heard yet.
func (h *host) forget() error {
	h.mu.Lock()
	h.heard = nil
	h.mu.Unlock()
	if h.lab != nil {
		h.lab.forget()
	}
	return h.letCanaryOut()
}

// silent judges that nobody came to the host's sockets.
func silent(h *host, out outcome) outcome {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.heard) > 0 {
		return broken("%s; the box: %s", strings.Join(h.heard, ", "), out.Saw)
	}
	return out
}

// alive judges that the canary lives.
func alive(h *host, out outcome) outcome {
	if !h.canaryLives() {
		return broken("the process outside is dead; the box: %s", out.Saw)
	}
	return out
}

// unchanged judges that the writable file outside is what it was.
func unchanged(h *host, out outcome) outcome {
	data, err := os.ReadFile(h.bait.script)
	if err != nil {
		return broken("the file outside cannot be read any more (%v); the box: %s", err, out.Saw)
	}
	if string(data) != h.bait.secret+"\n" {
		return broken("the file outside was changed; the box: %s", out.Saw)
	}
	return out
}

func (h *host) close() {
	for _, b := range h.shared {
		b.stop()
	}
	var errs []error
	for _, l := range h.listeners {
		errs = append(errs, l.Close())
	}
	if h.canary != nil && h.canary.Process != nil {
		_ = syscall.Kill(-h.canary.Process.Pid, syscall.SIGKILL) // it may be dead, of a probe
	}
	if err := errors.Join(errs...); err != nil {
		h.options.Logger.Debug("close the bait", "error", err)
	}
}
