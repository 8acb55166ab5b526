package netjail

import (
	"io"
	"sync"
)

// A body that values are put into, or taken out of, gets another length. Short ones are
// gathered in memory, so that it can be told before them; there is little of that, so
// others go out as they come, their length untold.

// Bounds of what is gathered, in bytes.
const (
	gatherMax     = 1 << 20  // of one body
	boxGathers    = 8 << 20  // by one box at a time
	workerGathers = 64 << 20 // by all boxes that share a [Memory]
)

// A Memory is what jails that share it may hold of bodies at a time.
type Memory struct {
	mu   sync.Mutex
	left int
}

// NewMemory is for the jails of one process.
func NewMemory() *Memory { return &Memory{left: workerGathers} }

// take takes n bytes, if there are as many.
func (m *Memory) take(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > m.left {
		return false
	}
	m.left -= n
	return true
}

func (m *Memory) give(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left += n
}

// gathered is a body of which the beginning, or all, is in memory. One goroutine reads
// it; any may close it.
type gathered struct {
	length int64 // -1 if the rest is yet to come
	atEnd  func()
	rest   io.Reader // nil if there is none
	under  io.Closer
	give   func(n int)

	mu     sync.Mutex
	chunks [][]byte
}

const gatherChunk = 16 << 10

// gather reads from up to its end, or until it is longer than it may be or there is no
// more room.
func (j *Jail) gather(from io.Reader, under io.Closer) (*gathered, error) {
	g := &gathered{length: -1, rest: from, under: under, atEnd: func() {}, give: func(n int) { j.memory.give(n); j.shared.give(n) }}
	for length := int64(0); length < gatherMax; {
		if !j.memory.take(gatherChunk) {
			return g, nil
		}
		if !j.shared.take(gatherChunk) {
			j.memory.give(gatherChunk)
			return g, nil
		}
		chunk := make([]byte, gatherChunk)
		n, err := io.ReadFull(from, chunk)
		g.chunks = append(g.chunks, chunk[:n])
		length += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			g.length, g.rest = length, nil
			return g, nil
		}
		if err != nil {
			g.release()
			return nil, err
		}
	}
	return g, nil
}

func (g *gathered) Read(p []byte) (n int, err error) {
	if n = g.held(p); n > 0 || len(p) == 0 {
		return n, nil
	}
	if err = io.EOF; g.rest != nil {
		n, err = g.rest.Read(p)
	}
	if err == io.EOF {
		g.atEnd()
	}
	return n, err
}

// held reads what is in memory, and lets go of it.
func (g *gathered) held(p []byte) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.chunks) > 0 {
		n := copy(p, g.chunks[0])
		g.chunks[0] = g.chunks[0][n:]
		if len(g.chunks[0]) == 0 {
			g.chunks = g.chunks[1:]
			g.give(gatherChunk)
		}
		if n > 0 || len(p) == 0 {
			return n
		}
	}
	return 0
}

func (g *gathered) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.give(len(g.chunks) * gatherChunk)
	g.chunks = nil
}

// Close lets go of all of it.
func (g *gathered) Close() error {
	g.release()
	return g.under.Close()
}
