package tunnel

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// sockets are the two ends of a connection.
func sockets(t *testing.T) (a, b *Socket) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Close()
		y.Close()
	})
	return NewSocket(x), NewSocket(y)
}

func TestASocketPassesWhatItGathersOnce(t *testing.T) {
	t.Parallel()
	a, b := sockets(t)
	sent := make([]byte, 500_000)
	rand.Read(sent)
	go func() {
		defer a.Close()
		for i, rest := 0, sent; len(rest) > 0; i++ {
			if i%7 == 0 {
				a.Gather()
			}
			part := rest[:min(len(rest), 1+i*379%(3*batchMax/2))]
			if n, err := a.Write(part); n != len(part) || err != nil {
				t.Errorf("wrote %d of %d, %v", n, len(part), err)
			}
			rest = rest[len(part):]
			if i%7 == 5 {
				if err := a.Flush(); err != nil {
					t.Error(err)
				}
			}
		}
		a.Flush()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, the same: %t, %v", len(got), len(sent), bytes.Equal(got, sent), err)
	}
}

func TestASocketLooksAheadWithoutWaiting(t *testing.T) {
	t.Parallel()
	a, b := sockets(t)
	peek := func() error {
		return b.Peek(func() error {
			_, err := b.Read(make([]byte, 1))
			return err
		})
	}
	if err := peek(); !isTimeout(err) {
		t.Fatalf("with nothing there: %v", err)
	}
	record := append([]byte{23, 3, 3, 0, 2}, "xy"...)
	a.Write(append(record[:6:6], 'y'))
	a.Write(record[:6]) // and one that is not whole
	buf := make([]byte, 7)
	b.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(b, buf[:1]); err != nil {
		t.Fatal(err)
	}
	if b.Ahead() {
		t.Error("what is ahead is no record's beginning")
	}
	if _, err := io.ReadFull(b, buf[:6]); err != nil {
		t.Fatal(err)
	}
	a.Write(record[6:])
	a.Write(record)
	if _, err := io.ReadFull(b, buf); err != nil {
		t.Fatal(err)
	}
	for !b.Ahead() { // it is on its way
		if _, err := io.ReadFull(b, buf[:0]); err != nil {
			t.Fatal(err)
		}
		if b.ahead == nil {
			if _, err := b.Read(nil); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	a.Close()
	rest, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(rest, record) {
		t.Errorf("the rest is %q, %v", rest, err)
	}
	if err := peek(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestADeadlineEndsASocketsRead(t *testing.T) {
	t.Parallel()
	a, b := sockets(t)
	b.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := b.Read(make([]byte, 1)); !isTimeout(err) {
		t.Fatalf("%v", err)
	}
	b.SetReadDeadline(time.Time{})
	a.Write([]byte("x"))
	if n, err := b.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	b.Close()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
