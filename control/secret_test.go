package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// A host has a directory of its own, with a key file in it once there is one.
type host struct {
	t    *testing.T
	path string
}

func newHost(t *testing.T) host { return host{t, filepath.Join(t.TempDir(), "vault.key")} }

func (h host) vault(old ...string) *vault.Vault {
	h.t.Helper()
	return must1[*vault.Vault](h.t)(vault.New(vault.Options{Key: "file:" + h.path, Old: old}))
}

// file is the key file, or "".
func (h host) file() string {
	h.t.Helper()
	text, err := os.ReadFile(h.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(text)
}

// has puts a key file there.
func (h host) has(text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// stranger is a host that has made a key for another database.
func stranger(t *testing.T) host {
	h := newHost(t)
	newWorld(t, Config{Vault: h.vault()})
	return h
}

// Several servers are on one empty database, each with a data directory of its own. The
// first one makes the key; nobody seals with another.
func TestAKeyIsMadeByOneServer(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]host{"no file": newHost(t), "another file": stranger(t)} {
		had := second.file()
		first := newHost(t)
		a := newWorld(t, Config{Vault: first.vault()})
		b := a.replica(Config{Vault: second.vault()})
		v := a.vault()
		must1[*api.Credential](t)(a.put(v, static("https://h/1", "one")))
		_, err := b.put(v, static("https://h/2", "two"))
		wantErr(t, err, 503, "key")
		if second.file() != had {
			t.Errorf("%s: the second server has made a key", name)
		}
		s := a.sessionWith(v)
		_, err = b.CredentialFor(b.ctx, s, "https://h/1")
		wantErr(t, err, 503, "key")

		// Once it has the key it goes on, as it is.
		second.has(first.file())
		must1[*api.Credential](t)(b.put(v, static("https://h/2", "two")))
		for _, w := range []*world{a, b} {
			for url, want := range map[string]string{"https://h/1": "Bearer one", "https://h/2": "Bearer two"} {
				if got, err := w.CredentialFor(w.ctx, s, url); err != nil || got != want {
					t.Errorf("%s: %s: %q, %v", name, url, got, err)
				}
			}
		}
	}
}

func TestServersThatStartAtOnceMakeOneKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Config{})
	v := w.vault()
	var mu sync.Mutex
	made, sealed := 0, 0
	var all errgroup.Group
	for i := range 6 {
		h := newHost(t)
		keys := h.vault()
		all.Go(func() error {
			c, err := New(w.ctx, w.url, store.Options{}, Config{Vault: keys, Clock: w.cfg.Clock})
			if err != nil {
				return err
			}
			defer c.Close()
			b := &world{Control: c, t: t, ctx: w.ctx, admin: w.admin}
			_, err = b.put(v, static(fmt.Sprintf("https://h/%d", i), "t"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				sealed++
			}
			if h.file() != "" {
				made++
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil || made != 1 || sealed != 1 {
		t.Errorf("%d servers made a key, and %d sealed with it, %v", made, sealed, err)
	}
}

// The servers are given another key file, with the present one as an old one.
func TestTheNextKeyIsMadeByOneServer(t *testing.T) {
	t.Parallel()
	shared := newHost(t)
	w := newWorld(t, Config{Vault: shared.vault()})
	v := w.vault()
	must1[*api.Credential](t)(w.put(v, static("https://h/0", "zero")))
	first, second := newHost(t), newHost(t)
	a := w.replica(Config{Vault: first.vault("file:" + shared.path)})
	b := w.replica(Config{Vault: second.vault("file:" + shared.path)})
	must1[*api.Credential](t)(a.put(v, static("https://h/1", "one")))
	_, err := b.put(v, static("https://h/2", "two"))
	wantErr(t, err, 503, "key")
	if second.file() != "" {
		t.Error("the second server has made a key")
	}
	if got, err := b.CredentialFor(b.ctx, w.sessionWith(v), "https://h/0"); err != nil || got != "Bearer zero" {
		t.Errorf("what the old key has sealed: %q, %v", got, err)
	}
}

// A key in a file is rotated where all servers read that file, which somebody has to say.
func TestAKeyFileOfOneServerIsNotRotatedForAll(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := newWorld(t, Config{Vault: h.vault()})
	had := h.file()
	for _, in := range []api.VaultKeyRotate{{}, {RewrapOnly: true}} {
		_, err := w.RotateVaultKey(w.ctx, w.admin, in)
		wantErr(t, err, 400, "shared_key_file")
	}
	if h.file() != had {
		t.Error("a key was made")
	}
	must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{SharedKeyFile: true}))
	if h.file() == had {
		t.Error("no key was made")
	}
	// Who is alone on its database is not asked, nor who has its key elsewhere.
	alone := newWorld(t, Config{Vault: newHost(t).vault(), Sole: true})
	must1[*api.VaultKeyRotation](t)(alone.RotateVaultKey(alone.ctx, alone.admin, api.VaultKeyRotate{}))
	far := newWorld(t, Config{Vault: newFarKey(t).vault(t)})
	must1[*api.VaultKeyRotation](t)(far.RotateVaultKey(far.ctx, far.admin, api.VaultKeyRotate{}))
}

func TestAKeyThatIsLostIsGivenUpOnlyByAPerson(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	first := newWorld(t, Config{Vault: h.vault()})
	v := first.vault()
	must1[*api.Credential](t)(first.put(v, static("https://h/1", "one")))
	for name, left := range map[string]host{"no file": newHost(t), "another file": stranger(t)} {
		w := first.replica(Config{Vault: left.vault(), Sole: true})
		_, err := w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{})
		wantErr(t, err, 503, "key")
		_, err = w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{RewrapOnly: true})
		wantErr(t, err, 503, "key")
		done := must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{AbandonLostKey: true}))
		if done.Failed == 0 || !strings.Contains(left.file(), done.KeyID) {
			t.Errorf("%s: %+v", name, done)
		}
		cred := must1[*api.Credential](t)(w.put(v, static("https://h/2", "two")))
		if got, err := w.CredentialFor(w.ctx, w.sessionWith(v), "https://h/2"); err != nil || got != "Bearer two" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		must1[*api.Credential](t)(w.ArchiveCredential(w.ctx, w.admin, v, cred.ID))
		_, err = w.RotateVaultKey(w.ctx, w.admin, api.VaultKeyRotate{AbandonLostKey: true})
		wantErr(t, err, 400, "not lost")
	}
}

func TestAServerStartsWhileItsKeyIsAway(t *testing.T) {
	t.Parallel()
	key := newFarKey(t)
	key.down.Store(true)
	w := newWorld(t, Config{Vault: key.vault(t)})
	v := w.vault()
	_, err := w.put(v, static("https://h", "t"))
	wantErr(t, err, 503, "key")
	if e := api.AsError(err); e.RetryAfter == 0 {
		t.Errorf("%+v says nothing of trying again", e)
	}
	key.down.Store(false)
	must1[*api.Credential](t)(w.put(v, static("https://h", "t")))
}

// A request moves a bounded number of secrets, and says where to go on.
func TestARotationGoesByPages(t *testing.T) {
	t.Parallel()
	w := newVaultWorld(t, Config{Sole: true})
	v := w.vault()
	cred := must1[*api.Credential](t)(w.put(v, static("https://h", "t")))
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	err := w.db.Write(ctx, func(tx *store.Tx) error {
		for i := range 2 * rewrapMax {
			owner := fmt.Sprintf("x%04d", i)
			sealed, err := w.cfg.Vault.Seal(ctx, vault.Owner{ID: owner, Field: "f"}, []byte("x"))
			if err != nil {
				return err
			}
			if i == rewrapMax/2 {
				owner = "xlost" // cannot be opened as its
			}
			if err := tx.PutSecret(&store.Secret{Owner: owner, Field: "f", KeyID: sealed.KeyID(), Sealed: string(sealed)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	in := api.VaultKeyRotate{}
	var total api.VaultKeyRotation
	pages := 0
	for {
		done := must1[*api.VaultKeyRotation](t)(w.RotateVaultKey(ctx, w.admin, in))
		if done.Rewrapped+done.Failed > rewrapMax || total.KeyID != "" && done.KeyID != total.KeyID {
			t.Errorf("page %d: %+v", pages, done)
		}
		total.KeyID, total.Rewrapped, total.Failed = done.KeyID, total.Rewrapped+done.Rewrapped, total.Failed+done.Failed
		if pages++; done.NextPage == "" {
			break
		}
		in = api.VaultKeyRotate{RewrapOnly: true, Page: done.NextPage}
	}
	if want := int64(2*rewrapMax + 1); total.Rewrapped != want || total.Failed != 1 || pages != 3 { // one that cannot be opened; the credential's, and the server's own
		t.Errorf("%d pages: %+v, want %d", pages, total, want)
	}
	if got, err := w.CredentialFor(ctx, w.sessionWith(v), cred.Auth.MCPServerURL); err != nil || got != "Bearer t" {
		t.Errorf("%q, %v", got, err)
	}
	for _, in := range []api.VaultKeyRotate{{RewrapOnly: true, Page: "!"}, {RewrapOnly: true, Page: "YQ"}, {Page: in.Page}} {
		_, err := w.RotateVaultKey(ctx, w.admin, in)
		wantErr(t, err, 400, "page")
	}
}
