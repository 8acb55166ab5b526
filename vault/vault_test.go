package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
)

var owner = Owner{"vcrd_1", "access_token"}

// open makes a vault on a key file of its own.
func open(t *testing.T) (*Vault, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vault.key")
	v, err := New(Options{Key: "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return v, path
}

func seal(t *testing.T, v *Vault, owner Owner, secret string) Sealed {
	t.Helper()
	s, err := v.Seal(t.Context(), owner, []byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	for _, secret := range []string{"", "a", "a token", strings.Repeat("x", SecretMax)} {
		s := seal(t, v, owner, secret)
		got, err := v.Open(t.Context(), owner, s)
		if err != nil || string(got) != secret {
			t.Errorf("%d bytes came back as %d, %v", len(secret), len(got), err)
		}
		if len(secret) > 3 && strings.Contains(string(s), secret) {
			t.Error("the secret is in its sealed form")
		}
	}
	once, again := seal(t, v, owner, "twice"), seal(t, v, owner, "twice")
	if once == again {
		t.Error("the same secret is sealed the same way twice")
	}
	if _, err := v.Seal(t.Context(), owner, make([]byte, SecretMax+1)); err == nil {
		t.Error("a secret beyond the bound was sealed")
	}
}

func TestWhatIsSealedForOneOwnerOpensForNoOther(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	s := seal(t, v, owner, "a token")
	for _, other := range []Owner{
		{"vcrd_2", "access_token"}, {"vcrd_1", "refresh_token"}, {"", ""},
		{"vcrd_1access", "_token"}, {"vcrd_", "1access_token"}, // the same letters, cut elsewhere
	} {
		if got, err := v.Open(t.Context(), other, s); err == nil {
			t.Errorf("%v opened it: %q", other, got)
		}
		if _, err := v.Rewrap(t.Context(), other, s); err == nil {
			t.Errorf("%v re-wrapped it", other)
		}
	}
}

func TestEveryChangedByteIsNoticed(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	s := seal(t, v, owner, "a token")
	for i := range len(s) {
		changed := []byte(s)
		changed[i] ^= 1
		if got, err := v.Open(t.Context(), owner, Sealed(changed)); err == nil {
			t.Errorf("byte %d of %q changed, and it opened: %q", i, s, got)
		}
	}
}

func TestRotationOfAKeyFile(t *testing.T) {
	t.Parallel()
	v, path := open(t)
	old := seal(t, v, owner, "a token")

	// A second process has read the file before the rotation.
	other, err := New(Options{Key: "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(t.Context(), []string{old.KeyID()}); err != nil {
		t.Fatal(err)
	}

	id, err := v.Rotate(t.Context())
	if err != nil || id == old.KeyID() {
		t.Fatalf("rotated to %q, %v", id, err)
	}
	if got, err := v.Open(t.Context(), owner, old); err != nil || string(got) != "a token" {
		t.Errorf("after the rotation the old one opens as %q, %v", got, err)
	}
	again, err := v.Rewrap(t.Context(), owner, old)
	if err != nil || again.KeyID() != id {
		t.Fatalf("re-wrapped under %q, %v; want %q", again.KeyID(), err, id)
	}
	before, _ := old.parts()
	after, _ := again.parts()
	if !slices.Equal(before.text, after.text) {
		t.Error("re-wrapping changed the ciphertext itself")
	}
	for name, v := range map[string]*Vault{"the process that rotated": v, "the other": other} {
		if got, err := v.Open(t.Context(), owner, again); err != nil || string(got) != "a token" {
			t.Errorf("%s opens the re-wrapped one as %q, %v", name, got, err)
		}
		if s := seal(t, v, owner, "new"); s.KeyID() != id {
			t.Errorf("%s seals with %s still", name, s.KeyID())
		}
	}
}

// Each has its own idea of the file, as processes have.
func TestProcessesThatRotateAtOnceLoseNoKey(t *testing.T) {
	t.Parallel()
	_, path := open(t)
	var mu sync.Mutex
	var made []string
	var all errgroup.Group
	for range 8 {
		all.Go(func() error {
			v, err := New(Options{Key: "file:" + path})
			for range 10 {
				if err != nil {
					break
				}
				var id string
				id, err = v.Rotate(t.Context())
				mu.Lock()
				made = append(made, id)
				mu.Unlock()
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	k := newFileKey(path)
	lost := slices.DeleteFunc(made, k.has)
	if len(lost) > 0 {
		t.Errorf("%d of 80 keys are gone", len(lost))
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
}

func TestProcessesThatStartAtOnceMakeOneKey(t *testing.T) {
	t.Parallel()
	for range 20 {
		path := filepath.Join(t.TempDir(), "vault.key")
		var mu sync.Mutex
		made := map[string]bool{}
		var all errgroup.Group
		begin := make(chan struct{})
		for range 8 {
			all.Go(func() error {
				v, err := New(Options{Key: "file:" + path})
				if err != nil {
					return err
				}
				<-begin
				if err := v.Start(t.Context(), nil); err != nil {
					return err
				}
				id, err := v.Check(t.Context())
				mu.Lock()
				defer mu.Unlock()
				made[id] = true
				return err
			})
		}
		close(begin)
		if err := all.Wait(); err != nil || len(made) != 1 {
			t.Fatalf("%d keys were made, %v", len(made), err)
		}
	}
}

func TestAKeyFileIsMadeOnlyWhereNothingIsSealed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "vault.key")
	v, err := New(Options{Key: "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	err = v.Start(t.Context(), []string{"file:0123456789abcdef"})
	if !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "file:0123456789abcdef") {
		t.Errorf("a start without the key gave %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a new key was made all the same: %v", err)
	}
	if _, err := v.Seal(t.Context(), owner, []byte("x")); err == nil {
		t.Error("something was sealed without a key")
	}

	if err := v.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the key file: %v, %v", info, err)
	}
	id, err := v.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, _ := New(Options{Key: "file:" + path})
	if err := again.Start(t.Context(), []string{id}); err != nil {
		t.Errorf("the second start: %v", err)
	}
}

func TestAKeyFileThatOthersCanReadIsRefused(t *testing.T) {
	t.Parallel()
	_, path := open(t)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{Key: "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Start(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("got %v", err)
	}
}

func TestParseKeyFile(t *testing.T) {
	t.Parallel()
	a, b := newVersion(), newVersion()
	line := func(v fileVersion) string { return v.id + " " + base64.StdEncoding.EncodeToString(v.data) }
	tests := map[string]struct {
		text string
		want []string
	}{
		"two, the current one last": {fileHead + line(a) + "\n\n" + line(b) + "\n", []string{a.id, b.id}},
		"no end of line":            {line(a), []string{a.id}},
		"nothing":                   {fileHead, nil},
		"an id of another key":      {a.id + " " + base64.StdEncoding.EncodeToString(b.data), nil},
		"a short key":               {a.id + " AAAA", nil},
		"no key":                    {a.id, nil},
		"no base64":                 {a.id + " !", nil},
	}
	for name, tt := range tests {
		versions, err := parseKeyFile([]byte(tt.text))
		var got []string
		for _, v := range versions {
			got = append(got, v.id)
		}
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), base64.StdEncoding.EncodeToString(b.data)) {
			t.Errorf("%s: the error has the key in it", name)
		}
	}
}

func TestKeysAreNamedByURL(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"file:/x": true, "file:x": true, "file:": false, "file:/x?y": false,
		"transit+https://h/transit/k": true, "transit+https://h:8200/a/b/k?namespace=n&token-file=/t": true,
		"transit+https://h/k": false, "transit+https://u:p@h/transit/k": false, "transit+https://h/a/../k": false,
		"transit+https://h/transit/k?what=1": false, "transit+ftp://h/transit/k": false,
		"awskms:alias/bailey?region=eu-central-1": true, "awskms:arn:aws:kms:eu-central-1:1:key/2": true, "awskms:": false,
		"awskms:a?endpoint=https://u:p@h": false, "awskms:a$b": false, "awskms://alias/x": true,
		"": false, "plain": false, "https://h/transit/k": false,
	} {
		if err := CheckURL(url); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestOldKeysOpenAndDoNotSeal(t *testing.T) {
	t.Parallel()
	v, path := open(t)
	s := seal(t, v, owner, "a token")
	next, err := New(Options{Key: "file:" + path + "2", Old: []string{"file:" + path}})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Start(t.Context(), []string{s.KeyID()}); err != nil {
		t.Fatal(err)
	}
	moved, err := next.Rewrap(t.Context(), owner, s)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := New(Options{Key: "file:" + path + "2"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := alone.Open(t.Context(), owner, moved); err != nil || string(got) != "a token" {
		t.Errorf("the new key alone opens it as %q, %v", got, err)
	}
	if _, err := alone.Open(t.Context(), owner, s); !errors.Is(err, ErrNoKey) {
		t.Errorf("without the old key: %v", err)
	}
}

func FuzzSealed(f *testing.F) {
	path := filepath.Join(f.TempDir(), "vault.key")
	v, err := New(Options{Key: "file:" + path})
	if err != nil {
		f.Fatal(err)
	}
	if err := v.Start(context.Background(), nil); err != nil {
		f.Fatal(err)
	}
	s, err := v.Seal(context.Background(), owner, []byte("a token"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(s))
	f.Add("bailey1$file:0$$")
	f.Add("bailey1$$$$")
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := Sealed(text).parts(); err == nil && string(p.sealed()) != text {
			t.Errorf("%q reads back as %q", text, p.sealed())
		}
		if got, err := v.Open(t.Context(), owner, Sealed(text)); err == nil && text != string(s) {
			t.Errorf("%q opened: %q", text, got)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	v := newVersion()
	f.Add([]byte(fileHead + v.id + " " + base64.StdEncoding.EncodeToString(v.data) + "\n"))
	f.Add([]byte("a b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		versions, err := parseKeyFile(data)
		for _, v := range versions {
			if err != nil || len(v.data) != dataKeyLen || v.id != fileKeyID(v.data) {
				t.Errorf("read a key that is none: %v", err)
			}
		}
	})
}
