package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// pair is a stream and the other end of its connection.
func pair(t *testing.T, onDrain func()) (*Stream, net.Conn) {
	a, b := net.Pipe()
	s := NewStream(a, StreamConfig{OnDrain: onDrain})
	t.Cleanup(func() {
		go io.Copy(io.Discard, b)
		s.Close()
		b.Close()
	})
	return s, b
}

func TestAStreamCutsWritesIntoFramesAndPutsThemTogether(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	from, to := NewStream(a, StreamConfig{}), NewStream(b, StreamConfig{})
	sent := bytes.Repeat([]byte("0123456789"), 10_000)
	go func() {
		if n, err := from.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d of %d, %v", n, len(sent), err)
		}
		from.Close()
	}()
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("read %d of %d bytes, %v", len(got), len(sent), err)
	}
	if from.Written() != int64(len(sent)) {
		t.Errorf("Written says %d", from.Written())
	}
	to.Close()
}

func TestAStreamSaysHowItEnded(t *testing.T) {
	t.Parallel()
	refused, _ := AppendMessage(nil, FrameRefused, Refusal{Stage: StageNoConnector, Detail: "nobody"})
	long := make([]byte, FrameHeader)
	PutHeader(long, FrameData, PayloadMax+1)
	for name, c := range map[string]struct {
		bytes []byte
		check func(error) bool
	}{
		"closed":    {AppendFrame(nil, FrameEnd, nil), func(err error) bool { return err == io.EOF }},
		"broken":    {nil, func(err error) bool { return hasStage(err, StageConnectorLost) && errors.Is(err, io.ErrUnexpectedEOF) }},
		"in frame":  {[]byte{byte(FrameData), 0}, func(err error) bool { return hasStage(err, StageConnectorLost) }},
		"in data":   {[]byte{byte(FrameData), 0, 9, 'x'}, func(err error) bool { return hasStage(err, StageConnectorLost) }},
		"refused":   {refused, func(err error) bool { return hasStage(err, StageNoConnector) }},
		"oversized": {long, func(err error) bool { return hasStage(err, StageProtocol) }},
		"foreign":   {AppendFrame(nil, FrameAttach, []byte("{}")), func(err error) bool { return hasStage(err, StageProtocol) }},
	} {
		s, far := pair(t, nil)
		go func() {
			far.Write(c.bytes)
			far.Close()
		}()
		_, err := io.Copy(io.Discard, s)
		if name == "closed" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_, err = s.Read(make([]byte, 1))
		}
		if !c.check(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, again := s.Read(make([]byte, 1)); again != err {
			t.Errorf("%s: then %v", name, again)
		}
		if s.Err() != err {
			t.Errorf("%s: Err says %v", name, s.Err())
		}
	}
}

func hasStage(err error, stage Stage) bool {
	e := AsError(err)
	return e != nil && e.Stage == stage
}

func TestADeadlineDoesNotHarmAStream(t *testing.T) {
	t.Parallel()
	s, far := pair(t, nil)
	frame := AppendFrame(nil, FrameData, []byte("hello"))
	for i := range frame { // a deadline after each byte
		s.SetReadDeadline(time.Now().Add(-time.Second))
		if _, err := s.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("before byte %d: %v", i, err)
		}
		s.SetReadDeadline(time.Now().Add(10 * time.Second))
		sent := make(chan struct{})
		go func() {
			far.Write(frame[i : i+1])
			close(sent)
		}()
		if i >= FrameHeader {
			var one [1]byte
			if _, err := s.Read(one[:]); err != nil || one[0] != frame[i] {
				t.Fatalf("byte %d: %q, %v", i, one, err)
			}
		} else {
			s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := s.Read(make([]byte, 8)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("within the header: %v", err)
			}
		}
		<-sent
	}
}

func TestASilentStreamIsKeptAliveAndADeadOneFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, far := pair(t, nil)
		got := make(chan error, 1)
		go func() {
			_, err := s.Read(make([]byte, 1))
			got <- err
		}()
		began := time.Now()
		// For an hour both say nothing but that they are there.
		for time.Since(began) < time.Hour {
			kind, _, err := ReadFrame(far, 0)
			if err != nil || kind != FramePing {
				t.Fatalf("after %v: frame %#x, %v", time.Since(began), kind, err)
			}
			if _, err := far.Write(AppendFrame(nil, FramePing, nil)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-got:
			t.Fatalf("the stream ended: %v", err)
		default:
		}
		// Then the other end is gone without a word.
		fell := time.Now()
		go io.Copy(io.Discard, far)
		err := <-got
		if !hasStage(err, StageConnectorLost) || time.Since(fell) > SilenceMax+2*KeepAlive {
			t.Errorf("after %v: %v", time.Since(fell), err)
		}
	})
}

// Who keeps a stream in reserve does not read, and still learns that nobody is there.
func TestAStreamInReserveGoesStaleWhenNothingIsHeard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, far := pair(t, nil)
		go io.Copy(io.Discard, far)
		look := func() {
			s.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := s.Read(make([]byte, 1)); !isTimeout(err) {
				t.Fatalf("the stream ended: %v", err)
			}
		}
		for range 10 {
			go far.Write(AppendFrame(nil, FramePing, nil))
			time.Sleep(KeepAlive)
			if look(); s.Stale() {
				t.Fatal("it is stale though the other end says that it is there")
			}
		}
		time.Sleep(3 * KeepAlive)
		if look(); !s.Stale() {
			t.Error("nothing was heard for a minute, and it is not stale")
		}
		go far.Write(AppendFrame(nil, FramePing, nil))
		synctest.Wait()
		if look(); s.Stale() {
			t.Error("it is stale though something has come")
		}
	})
}

func TestAStreamPassesADrainOn(t *testing.T) {
	t.Parallel()
	drained := make(chan struct{})
	s, far := pair(t, func() { close(drained) })
	go func() {
		far.Write(AppendFrame(nil, FrameDrain, nil))
		far.Write(AppendFrame(nil, FrameDrain, nil))
		far.Write(AppendFrame(nil, FrameData, []byte("x")))
	}()
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	<-drained
	if !s.Draining() {
		t.Error("Draining says no")
	}
}

func TestCloseCutsAWriteShort(t *testing.T) {
	t.Parallel()
	s, _ := pair(t, nil)
	wrote := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 100)) // nobody reads it
		wrote <- err
	}()
	for s.Written() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if err := <-wrote; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the write ended with %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after it: %v", err)
	}
}

// What has failed has nothing to say or hear, whether or not somebody closes it.
func TestAStreamThatFailedTicksNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		c := &countingCarrier{Conn: a}
		s := NewStream(c, StreamConfig{})
		s.Fail(Errorf(StageConnectorLost, "it was cut"))
		time.Sleep(10 * KeepAlive)
		if c.writes != 0 {
			t.Errorf("%d pings", c.writes)
		}
	})
}

// A countingCarrier counts what is written.
type countingCarrier struct {
	net.Conn
	writes int
}

func (c *countingCarrier) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}
