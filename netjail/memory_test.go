package netjail

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestGather(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("0123456789abcdef", 5*gatherChunk/16)
	for _, tt := range []struct {
		name        string
		box, worker int // chunks there is room for
		from        io.Reader
		length      int64
		err         bool
	}{
		{"all of it", 10, 10, strings.NewReader(text), int64(len(text)), false},
		{"nothing", 10, 10, strings.NewReader(""), 0, false},
		{"more than the box has room for", 3, 10, strings.NewReader(text), -1, false},
		{"more than the worker has room for", 10, 3, strings.NewReader(text), -1, false},
		{"no room at all", 0, 0, strings.NewReader(text), -1, false},
		{"a body that breaks off", 10, 10, io.MultiReader(strings.NewReader(text), iotest.ErrReader(errors.New("gone"))), 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			j := &Jail{memory: &Memory{left: tt.box * gatherChunk}, shared: &Memory{left: tt.worker * gatherChunk}}
			want := text
			if tt.length == 0 {
				want = ""
			}
			for _, whole := range []bool{true, false} {
				g, err := j.gather(tt.from, io.NopCloser(nil))
				if (err != nil) != tt.err {
					t.Fatalf("error %v", err)
				}
				if err == nil && g.length != tt.length {
					t.Errorf("its length is %d, want %d", g.length, tt.length)
				}
				if err == nil && whole {
					got, err := io.ReadAll(iotest.OneByteReader(g))
					if err != nil || string(got) != want {
						t.Errorf("read %d bytes of %d, %v", len(got), len(want), err)
					}
				}
				if err == nil {
					if err := g.Close(); err != nil {
						t.Error(err)
					}
				}
				if j.memory.left != tt.box*gatherChunk || j.shared.left != tt.worker*gatherChunk {
					t.Errorf("%d and %d bytes are held after it is closed", tt.box*gatherChunk-j.memory.left, tt.worker*gatherChunk-j.shared.left)
				}
				if tt.err {
					return
				}
				tt.from = strings.NewReader(want) // again, closed unread
			}
		})
	}
}

// TestAFewPlaceholdersAreNotMadeMegabytes: what is ready of a stream is never more than
// one replacement, or what was read.
func TestAFewPlaceholdersAreNotMadeMegabytes(t *testing.T) {
	t.Parallel()
	p := new(patterns)
	p.add("placeholder", "")
	value := bytes.Repeat([]byte("v"), ValueMax)
	r := newRewriter(strings.NewReader(strings.Repeat("placeholder", 10_000)), fixed(p), func(*pair) ([]byte, error) { return value, nil }).(*rewriter)
	total, buf := 0, make([]byte, 1000)
	for {
		n, err := r.Read(buf)
		total += n
		if len(r.out) > ValueMax || cap(r.buf) > 2*rewriteChunk {
			t.Fatalf("%d bytes are ready and %d read", len(r.out), cap(r.buf))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total != 10_000*ValueMax {
		t.Errorf("%d bytes came out", total)
	}
}

// TestManySecretsDoNotStallAStream: the time that a stream takes does not go with the
// number of matches times the number of secrets.
func TestManySecretsDoNotStallAStream(t *testing.T) {
	t.Parallel()
	s := newSecrets(nil)
	for i := range CredentialsMax {
		name := string(rune('A'+i/26)) + string(rune('A'+i%26))
		for k := range valuesMax {
			s.learn(name, strings.Repeat(name, 20)+string(rune('0'+k)))()
		}
	}
	stream := strings.Repeat(strings.Repeat("CL", 20)+"3", 20_000) // of the last of them
	clean, err := io.ReadAll(newRewriter(strings.NewReader(stream), s.patterns, replaced))
	if err != nil || bytes.Contains(clean, []byte("CLCL")) {
		t.Errorf("%d bytes, %v", len(clean), err)
	}
}

func TestSecretsAreKnownWhileTheyAreUsed(t *testing.T) {
	t.Parallel()
	s := newSecrets(nil)
	ph := s.placeholder("T")
	knows := func(value string) bool { return string(s.patterns().redact([]byte(value))) == ph }
	forget := s.learn("T", "value-in-use")
	for i := range 10 {
		s.learn("T", "other-value-"+string(rune('0'+i)))()
	}
	if !knows("value-in-use") || knows("other-value-0") || !knows("other-value-9") {
		t.Error("a value that a request was sent with is forgotten, or others are not")
	}
	forget()
	if knows("value-in-use") || !knows("other-value-9") || !knows("other-value-6") {
		t.Error("the wrong values are remembered")
	}
}
