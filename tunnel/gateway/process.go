package gateway

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// A program is what a stdio route runs.
type program struct {
	args    []string
	dir     string
	env     []string
	secrets map[string]string   // the part of env that comes from files
	as      *syscall.Credential // nil for the gateway's own user
	procs   Process
	log     *slog.Logger
}

// Bounds of a process.
const (
	lineMax    = 16 << 20        // bytes of a message of a program's
	stderrMax  = 4 << 10         // bytes of a line that it logs
	stderrRate = 50              // lines a second
	stdinMax   = 64              // messages that wait to be taken by it
	stopTime   = 5 * time.Second // to end by itself once its input has ended, and once more after SIGTERM
	lingerTime = time.Second     // for what it said last to be read once it has ended
)

func newProgram(c *Config, r *Route, log *slog.Logger) (*program, error) {
	p := &program{secrets: make(map[string]string), args: r.Command, dir: cmp.Or(r.Dir, c.Data), procs: r.Process, log: log}
	u, err := r.Process.runsAs()
	if err != nil {
		return nil, fmt.Errorf("process.user: %w", err)
	}
	// What the gateway has in its environment is not the program's business.
	env := make(map[string]string)
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	if u != nil {
		if p.as, err = credential(u); err != nil {
			return nil, fmt.Errorf("process.user: %w", err)
		}
		env["HOME"] = u.HomeDir
		p.dir = cmp.Or(r.Dir, "/") // the gateway's own is for nobody else's eyes
	}
	for name, value := range r.Env {
		env[name] = value
	}
	for name, file := range r.EnvFrom {
		value, err := readSecret(file)
		if err != nil {
			return nil, fmt.Errorf("env-from: %w", err)
		}
		env[name], p.secrets[name] = value, value
	}
	for name, value := range env {
		p.env = append(p.env, name+"="+value)
	}
	slices.Sort(p.env)
	return p, nil
}

// runsAs is the user that the programs run as, nil where it is the gateway's own. A
// gateway that is root has to be told: what it runs would be root as well.
func (r *Process) runsAs() (*user.User, error) {
	if r.User == "" {
		if os.Geteuid() == 0 {
			return nil, errors.New("this gateway is root: name the user that the program is to run as (or root, if it has to be)")
		}
		return nil, nil
	}
	u, err := user.Lookup(r.User)
	if err != nil || u.Uid == strconv.Itoa(os.Geteuid()) {
		return nil, err
	}
	return u, nil
}

func credential(u *user.User) (*syscall.Credential, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// A process is a program that runs. Messages go in by send, and come out to the function
// it was started with, one at a time.
type process struct {
	cmd   *exec.Cmd
	log   *slog.Logger
	input chan []byte
	began time.Time

	stopping  chan struct{}
	stopOnce  sync.Once
	gone      chan struct{} // closed when it has ended and all it said was handed out
	goneError error         // how it ended; valid once gone is closed

	mu     sync.Mutex
	reaped bool // its id may be another's
}

// notStarted says what err of a start means: the system names the program also where it
// is its directory that is missing, or closed to the user.
func (p *program) notStarted(err error) error {
	info, dirErr := os.Stat(p.dir)
	switch {
	case dirErr != nil:
		return fmt.Errorf("dir, where the program is to run: %w", dirErr)
	case !info.IsDir():
		return fmt.Errorf("dir, where the program is to run: %s is no directory", p.dir)
	case errors.Is(err, os.ErrPermission) && p.as != nil:
		return fmt.Errorf("%w: as user %s, in %s", err, p.procs.User, p.dir)
	}
	return err
}

// start runs the program. receive gets each message that it writes: JSON in one line,
// which is not kept.
func (p *program) start(receive func([]byte)) (*process, error) {
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Dir, cmd.Env = p.dir, p.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.as}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, p.notStarted(err)
	}
	run := &process{
		cmd: cmd, log: p.log.With("pid", cmd.Process.Pid), input: make(chan []byte, stdinMax), began: time.Now(),
		stopping: make(chan struct{}), gone: make(chan struct{}),
	}
	if err := p.limit(cmd.Process.Pid); err != nil {
		run.kill(syscall.SIGKILL)
		_ = cmd.Wait()
		return nil, fmt.Errorf("bound the program: %w", err)
	}
	var out sync.WaitGroup
	out.Go(func() { run.logLines(stderr) })
	out.Go(func() {
		if err := run.readMessages(stdout, receive); err != nil {
			run.log.Error("the program's output cannot be read on", "error", err)
			run.stop()
		}
	})
	go run.writeMessages(stdin)
	go run.end(func() {
		// What it has started and what has left its group may hold its pipes: they end
		// here all the same.
		_ = stdin.Close()
		linger := time.AfterFunc(lingerTime, func() {
			run.log.Warn("something that the program has started runs on, and holds its output; it was closed")
			_ = stdout.Close()
			_ = stderr.Close()
		})
		out.Wait()
		linger.Stop()
		_ = stdout.Close()
		_ = stderr.Close()
	})
	return run, nil
}

// limit bounds what the process, and those it starts, may use.
func (p *program) limit(pid int) error {
	for _, l := range []struct{ resource, value int }{
		{unix.RLIMIT_AS, int(p.procs.Memory)},
		{unix.RLIMIT_CPU, int(time.Duration(p.procs.CPU) / time.Second)},
		{unix.RLIMIT_NOFILE, p.procs.Files},
		{unix.RLIMIT_CORE, -1},
	} {
		if l.value == 0 {
			continue
		}
		n := uint64(max(l.value, 0))
		if err := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// alive reports whether the program runs and was not asked to end.
func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	case <-p.stopping:
		return false
	default:
		return true
	}
}

var errBusy = errors.New("the program does not take its input")

// send hands a message to the program: JSON in one line.
func (p *process) send(line []byte) error {
	if !p.alive() {
		return io.ErrClosedPipe
	}
	select {
	case p.input <- line:
		return nil
	default:
		return errBusy
	}
}

func (p *process) writeMessages(stdin io.WriteCloser) {
	defer stdin.Close() // which is how a program is asked to end
	for {
		select {
		case line := <-p.input:
			if _, err := stdin.Write(append(line, '\n')); err != nil {
				return
			}
		case <-p.stopping:
			return
		case <-p.gone:
			return
		}
	}
}

func (p *process) readMessages(stdout io.Reader, receive func([]byte)) error {
	in := bufio.NewReaderSize(stdout, 64<<10)
	var long []byte
	for {
		part, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || err == nil && len(long) > 0 {
			if long = append(long, part...); len(long) > lineMax {
				return fmt.Errorf("a message is longer than %d bytes", lineMax)
			}
			if err != nil {
				continue
			}
			part, long = long, nil
		}
		if err != nil {
			return nil // it has closed its output
		}
		line := bytes.TrimSpace(part)
		switch {
		case len(line) == 0:
		case line[0] != '{' && line[0] != '[' || checkJSON(line) != nil:
			p.log.Debug("the program wrote what is no message", "bytes", len(line))
		default:
			receive(line)
		}
	}
}

// logLines logs what the program says for people.
func (p *process) logLines(stderr io.Reader) {
	in := bufio.NewReaderSize(stderr, stderrMax)
	allowed := rate.NewLimiter(stderrRate, 4*stderrRate)
	dropped := 0
	for {
		line, more, err := in.ReadLine()
		if err != nil {
			return
		}
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
		if !allowed.Allow() {
			dropped++
			continue
		}
		if dropped > 0 {
			p.log.Warn("lines of the program were dropped, as there were too many", "lines", dropped)
			dropped = 0
		}
		p.log.Info("program: " + string(bytes.ToValidUTF8(line, []byte("?"))))
	}
}

// stop asks the program to end, and sees to it that it does. It does not wait.
func (p *process) stop() {
	p.stopOnce.Do(func() {
		close(p.stopping)
		go func() {
			for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
				select {
				case <-p.gone:
					return
				case <-time.After(stopTime):
					p.kill(signal)
				}
			}
		}()
	})
}

// kill signals the program and all that it has started and that has not left its group.
func (p *process) kill(signal syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		_ = syscall.Kill(-p.cmd.Process.Pid, signal)
	}
}

// end waits for the program to end. What it has started and left behind goes with it,
// before it is reaped: until then the id of its group cannot become another's.
func (p *process) end(drain func()) {
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.kill(syscall.SIGKILL)
	p.mu.Lock()
	state, err := p.cmd.Process.Wait()
	p.reaped = true
	p.mu.Unlock()
	drain()
	p.goneError = err
	if err == nil {
		p.goneError = errors.New(state.String())
	}
	p.log.Info("the program has ended", "state", p.goneError.Error(), "after", time.Since(p.began).Round(time.Millisecond))
	close(p.gone)
}

// oneLine is a JSON text without line breaks, in memory of its own.
func oneLine(text []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(text) + 1)
	_ = json.Compact(&b, text) // it is valid
	return b.Bytes()
}
