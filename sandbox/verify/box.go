package verify

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// A question is a line that the host writes to a prober, and an [outcome] a line that
// it writes back.
type question struct {
	ID    string `json:"id"`
	Facts facts  `json:"facts"`
}

// answerMax bounds a line of a prober's in bytes. It is not trusted.
const answerMax = 256 << 10

// A box is a sandbox with a prober in it.
type box struct {
	box     sandbox.Box
	network io.Closer // what serves its exits, or nil
	answers chan answer
	ended   chan struct{}
	once    sync.Once
}

type answer struct {
	out outcome
	err error
}

// boxFor returns the box that a check runs in: one of its own if it needs one that is
// different, else the one that all such checks share.
func (h *host) boxFor(ctx context.Context, c check) (*box, error) {
	if c.spec == nil && h.shared[c.network] != nil {
		return h.shared[c.network], nil
	}
	b, err := h.start(ctx, c)
	if err == nil && c.spec == nil {
		h.shared[c.network] = b
	}
	return b, err
}

// lose forgets a box that cannot be used any more, and ends it.
func (h *host) lose(b *box) {
	for key, shared := range h.shared {
		if shared == b {
			delete(h.shared, key)
		}
	}
	b.stop()
}

func (h *host) start(ctx context.Context, c check) (*box, error) {
	h.boxes++
	workDir := filepath.Join(h.dir, fmt.Sprintf("work-%d", h.boxes))
	if err := os.Mkdir(workDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(h.bait.file, filepath.Join(workDir, planted)); err != nil {
		return nil, err
	}
	spec := sandbox.Spec{
		ID:      fmt.Sprintf("verify-%d-%d", os.Getpid(), h.boxes),
		Command: append([]string{sandbox.AgentPath}, h.options.ProberArgs...),
		Agent:   h.options.Prober,
		Image:   h.options.Image,
		WorkDir: workDir,
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + sandbox.HomePath,
		},
		Limits: sandbox.Limits{MemoryBytes: 512 << 20, Processes: 256, DiskBytes: 64 << 20, CPUs: 1},
	}
	if c.spec != nil {
		c.spec(&spec)
	}
	b := &box{answers: make(chan answer, 1), ended: make(chan struct{})}
	if c.network && h.report.Network {
		network, closer, err := h.lab.attach(&spec, filepath.Join(h.dir, fmt.Sprintf("net-%d", h.boxes)))
		if err != nil {
			return nil, err
		}
		spec.Network, b.network = network, closer
	}
	ctx, cancel := context.WithTimeout(ctx, boxPatience)
	defer cancel()
	var err error
	if b.box, err = h.options.Driver.Start(ctx, spec); err != nil {
		if b.network != nil {
			b.network.Close()
		}
		return nil, err
	}
	go func() {
		b.box.Wait()
		close(b.ended)
	}()
	go b.read()
	return b, nil
}

// read passes on what the prober says.
func (b *box) read() {
	_, stdout := b.box.Stdio()
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, answerMax)
	for lines.Scan() {
		var a answer
		if a.err = json.Unmarshal(lines.Bytes(), &a.out); a.err == nil {
			switch a.out.Status {
			case Held, Broken, Skipped:
			default:
				a.err = fmt.Errorf("the prober says %.40q", a.out.Status)
			}
		}
		b.answers <- a
	}
	b.answers <- answer{err: errors.Join(io.ErrUnexpectedEOF, lines.Err())}
}

// ask has the prober try a check.
func (b *box) ask(ctx context.Context, id string, f facts) (outcome, error) {
	stdin, _ := b.box.Stdio()
	line, err := json.Marshal(question{id, f})
	if err != nil {
		return outcome{}, err
	}
	if _, err := stdin.Write(append(line, '\n')); err != nil {
		return outcome{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	select {
	case a := <-b.answers:
		return a.out, a.err
	case <-ctx.Done():
		return outcome{}, ctx.Err()
	}
}

// exit returns why the box ended, if it does within a moment.
func (b *box) exit() (sandbox.Exit, bool) {
	moment := time.NewTimer(10 * time.Second)
	defer moment.Stop()
	select {
	case <-b.ended:
		return b.box.Wait(), true
	case <-moment.C:
		return sandbox.Exit{}, false
	}
}

func (b *box) stop() {
	b.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), boxPatience)
		defer cancel()
		_ = b.box.Stop(ctx) // what it leaves is the contract suite's business
		if b.network != nil {
			b.network.Close()
		}
	})
}
