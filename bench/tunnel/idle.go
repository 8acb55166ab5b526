package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bailey-platform/bailey/tunnel"
)

// idle attaches many connectors, each of a tunnel of its own, to an edge of its own,
// and prints what memory that takes there: with the spare data connections that are
// kept at first, and without.
func (s *stage) idle(ctx context.Context, tunnels int) error {
	const each = 2500 // of one process
	settle := time.Minute
	if most := (openFilesMax() - 200) / 2; tunnels > most {
		fmt.Printf("%d idle tunnels, as no more files can be open\n", most)
		tunnels = most
	}
	addr, pid, err := s.startPID("role-edge", role{Dir: s.dir, Token: s.token.Text(), SpareIdle: 2 * settle})
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	before, err := resident(pid)
	if err != nil {
		return err
	}
	for i := range (tunnels + each - 1) / each {
		if _, err := s.start("role-idle", role{Dir: s.dir, Edge: addr, Idle: min(each, tunnels-i*each), From: i + 1}); err != nil {
			return err
		}
	}
	for _, what := range []string{"each with a spare data connection", "after a while without"} {
		// What handshakes have used goes back to the system by and by.
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		after, err := resident(pid)
		if err != nil {
			return err
		}
		fmt.Printf("%d idle tunnels by TCP, %s: %d MiB resident at the edge, %d MiB without them, %.1f KiB a tunnel\n",
			tunnels, what, after>>20, before>>20, float64(after-before)/1024/float64(tunnels))
		settle *= 4
	}
	return nil
}

// openFilesMax is how many files a process of ours can have open.
func openFilesMax() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(limit.Max)
}

// resident is the resident memory of a process, in bytes.
func resident(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, errors.New("statm cannot be read")
	}
	pages, err := strconv.Atoi(fields[1])
	return pages * os.Getpagesize(), err
}

// idlers attaches connectors that do nothing. They are not package connect's, whose
// own memory is not what is measured.
func idlers(ctx context.Context, r role) error {
	outer, err := readCA(r.Dir, "outer")
	if err != nil {
		return err
	}
	config := &tls.Config{
		RootCAs: outer.pool(), ServerName: "edge.bench", MinVersion: tls.VersionTLS13,
		NextProtos: []string{tunnel.ALPNConnector}, ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	// One address has not ports enough for all.
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(r.From))}}
	dial := func() (*tls.Conn, error) {
		raw, err := dialer.DialContext(ctx, "tcp", r.Edge)
		if err != nil {
			return nil, err
		}
		return tls.Client(raw, config), nil
	}
	var keep []*tls.Conn
	for i := range r.Idle {
		control, err := dial()
		if err != nil {
			return err
		}
		hello, err := tunnel.AppendMessage(nil, tunnel.FrameAttach, tunnel.Attach{
			Token: "idle", ConnectorID: fmt.Sprintf("idle-%d-%d", r.From, i), Version: "idle",
		})
		if err != nil {
			return err
		}
		if _, err := control.Write(hello); err != nil {
			return err
		}
		t, payload, err := tunnel.ReadFrame(control, tunnel.MessageMax)
		if err != nil || t != tunnel.FrameAttached {
			return fmt.Errorf("not attached: frame %#x, %w", byte(t), err)
		}
		attached, err := tunnel.ParseAttached(payload)
		if err != nil {
			return err
		}
		data, err := dial()
		if err != nil {
			return err
		}
		if _, err := data.Write(tunnel.AppendFrame(nil, tunnel.FramePark, attached.Ticket)); err != nil {
			return err
		}
		keep = append(keep, control, data)
	}
	ready("idle")
	tick := time.NewTicker(tunnel.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			for _, conn := range keep {
				conn.Write(tunnel.AppendFrame(nil, tunnel.FramePing, nil)) // those that were given up fail
			}
		}
	}
}
