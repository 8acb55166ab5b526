package netjail

import (
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// splice passes on what both ends send, after first from the box, and returns how much
// that was each way. When one end says that it sends no more, the other is told so; an
// error of one is an error of the other, and the first is returned.
func splice(box, host *net.TCPConn, first []byte) (sent, received int64, err error) {
	var both sync.WaitGroup
	var once sync.Once
	broken := func(why error) {
		once.Do(func() { err = why })
		reset(box)
		reset(host)
	}
	both.Go(func() {
		n, err := host.Write(first)
		sent = int64(n)
		if err == nil {
			var more int64
			more, err = passOn(host, box)
			sent += more
		}
		if err != nil {
			broken(err)
		}
	})
	received, rerr := passOn(box, host)
	if rerr != nil {
		broken(rerr)
	}
	both.Wait()
	return sent, received, err
}

// passOn moves what from sends to to, within the kernel: [net.TCPConn.ReadFrom] splices.
func passOn(to, from *net.TCPConn) (int64, error) {
	n, err := to.ReadFrom(from)
	if err == nil {
		err = to.CloseWrite()
	}
	return n, err
}

// watch cuts connections that have been idle for too long, or open.
func (j *Jail) watch() error {
	ticker := time.NewTicker(min(j.limits.Idle, j.limits.Total) / 4)
	defer ticker.Stop()
	for {
		select {
		case <-j.ctx.Done():
			return nil
		case <-ticker.C:
		}
		for _, l := range j.links() {
			quiet, err := silence(l.conn)
			switch {
			case err != nil: // it is closed
			case quiet >= j.limits.Idle:
				j.limit("idle", fmt.Sprintf("the connection to %s was cut, as nothing was sent on it for %s", l.at(), j.limits.Idle))
				l.cut("cut for saying nothing")
			case time.Since(l.opened) >= j.limits.Total:
				j.limit("total", fmt.Sprintf("the connection to %s was cut, as it was open for %s", l.at(), j.limits.Total))
				l.cut("cut for its age")
			}
		}
	}
}

// silence is for how long nothing was sent on a connection, either way. The kernel knows,
// so that passing bytes on need not.
func silence(conn *net.TCPConn) (time.Duration, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var inner error
	err = raw.Control(func(fd uintptr) {
		info, inner = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil {
		return 0, err
	}
	if inner != nil {
		return 0, inner
	}
	return time.Duration(min(info.Last_data_recv, info.Last_data_sent)) * time.Millisecond, nil
}
