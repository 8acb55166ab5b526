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

func TestASocketInAHurryDoesNotWait(t *testing.T) {
	t.Parallel()
	a, b := sockets(t)
	buf := make([]byte, 8)
	b.Hurry(true)
	if n, err := b.Read(buf); n != 0 || !isTimeout(err) {
		t.Fatalf("with nothing there: %d, %v", n, err)
	}
	a.Write([]byte("one"))
	b.Hurry(false)
	if n, err := b.Read(buf); string(buf[:n]) != "one" || err != nil {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	a.Write([]byte("three"))
	if _, err := io.ReadFull(b, buf[:2]); err != nil {
		t.Fatal(err)
	}
	b.Hurry(true)
	if n, err := b.Read(buf); string(buf[:n]) != "ree" || err != nil {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if n, err := b.Read(buf); n != 0 || !isTimeout(err) {
		t.Fatalf("with nothing left: %d, %v", n, err)
	}
	a.Close()
	b.Hurry(false)
	if _, err := b.Read(buf); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v", err)
	}
	b.Hurry(true)
	if _, err := b.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("at the end, in a hurry: %v", err)
	}
	b.Close()
	if _, err := b.Read(buf); err == nil || isTimeout(err) {
		t.Errorf("after Close: %v", err)
	}
}

func TestASocketTellsWhetherThereIsMore(t *testing.T) {
	t.Parallel()
	a, b := sockets(t)
	const size = 100 // in a record
	record := make([]byte, size+recordOverhead)
	for _, c := range []struct {
		sent int
		more bool
	}{{len(record), false}, {len(record) + 1, true}, {len(record) - 1, false}, {2 * len(record), true}} {
		if _, err := a.Write(make([]byte, c.sent)); err != nil {
			t.Fatal(err)
		}
		n, err := b.Read(make([]byte, 4*len(record)))
		if n != c.sent || err != nil {
			t.Fatalf("read %d of %d, %v", n, c.sent, err)
		}
		if b.More(size) != c.more {
			t.Errorf("after %d bytes, of which a record has %d: %t", c.sent, len(record), !c.more)
		}
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
