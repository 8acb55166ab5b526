package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/store"
	"github.com/bailey-platform/bailey/vault"
)

// A farKey stands for a key that is elsewhere: a transit engine that wraps nothing.
type farKey struct {
	*httptest.Server
	unwrapping func() // before each answer; may be nil
	down       atomic.Bool
}

func newFarKey(t *testing.T) *farKey {
	k := new(farKey)
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if k.down.Load() {
			http.Error(w, `{"errors":["sealed"]}`, http.StatusServiceUnavailable)
			return
		}
		var in struct{ Plaintext, Ciphertext string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		if strings.Contains(r.URL.Path, "/decrypt/") && k.unwrapping != nil {
			k.unwrapping()
		}
		fmt.Fprintf(w, `{"data":{"ciphertext":"vault:v1:%s","plaintext":%q}}`, in.Plaintext, strings.TrimPrefix(in.Ciphertext, "vault:v1:"))
	}))
	t.Cleanup(k.Close)
	return k
}

// vault makes one that has nothing of the key in memory.
func (k *farKey) vault(t *testing.T) *vault.Vault {
	t.Helper()
	return must1[*vault.Vault](t)(vault.New(vault.Options{
		Key: "transit+" + k.URL + "/transit/k",
		Env: func(string) (string, bool) { return "token", true },
	}))
}

// replica is another process on w's database.
func (w *world) replica(cfg Config) *world {
	w.t.Helper()
	cfg.Clock = w.cfg.Clock
	if cfg.HTTP == nil {
		cfg.HTTP = w.cfg.HTTP
	}
	c := must1[*Control](w.t)(New(w.ctx, w.url, store.Options{}, cfg))
	w.t.Cleanup(func() { c.Close() })
	return &world{Control: c, t: w.t, ctx: w.ctx, admin: w.admin, url: w.url}
}

func (w *world) row(v api.VaultID, id api.CredentialID) (cred *store.Credential) {
	w.t.Helper()
	err := w.db.Read(w.ctx, func(tx *store.Tx) (err error) {
		cred, err = tx.Credential(v, id)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return cred
}

// A key that is elsewhere may take its time. The lease is for what follows.
func TestARenewalIsClaimedOnceItsSecretsAreOpen(t *testing.T) {
	t.Parallel()
	as, key := newFakeAS(t), newFarKey(t)
	w := newVaultWorld(t, Config{Vault: key.vault(t)})
	v := w.vault()
	cred := w.oauth(v, as)
	var opened, claimed int
	key.unwrapping = func() {
		opened++
		if w.row(v, cred.ID).RefreshOwner != "" {
			claimed++
		}
	}
	fresh := w.replica(Config{Vault: key.vault(t)})
	if err := fresh.renew(w.ctx, fresh.row(v, cred.ID)); err != nil {
		t.Fatal(err)
	}
	if opened != 1 || claimed != 0 {
		t.Errorf("%d secrets were opened, %d of them after the claim; want the refresh token, before it", opened, claimed)
	}
	if as.count() != 1 || w.row(v, cred.ID).RefreshedAt == nil {
		t.Errorf("asked %d times, %+v", as.count(), w.row(v, cred.ID))
	}
}

// Who has waited for somebody else's lease to end has as long for the rest as others.
func TestARenewalThatHasBegunDoesNotEndWithTheWaiting(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := w.oauth(v, as)
	waiting, end := context.WithCancel(w.ctx)
	as.answer = func(http.ResponseWriter) bool {
		end()
		return false
	}
	if err := w.renewAlone(waiting, w.row(v, cred.ID)); err != nil || w.row(v, cred.ID).RefreshedAt == nil {
		t.Errorf("%v, %+v", err, w.row(v, cred.ID))
	}
}

func TestARenewalUnderWayIsEndedBeforeTheServer(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.asked = make(chan struct{})
	w := newVaultWorld(t, Config{})
	v := w.vault()
	cred := w.oauth(v, as)
	s := w.sessionWith(v)
	w.pass(11 * time.Minute)
	next := w.replica(Config{Vault: w.cfg.Vault})
	ctx, leave := context.WithCancel(w.ctx)
	left := make(chan error, 1)
	go func() {
		_, err := w.CredentialFor(ctx, s, "https://h/mcp")
		left <- err
	}()
	w.claimed(v, cred.ID)
	leave() // as whatever asked for it ends before the server does
	<-left
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		w.Close()
	}()
	for !w.hub.isClosed() { // it has begun to end
		time.Sleep(time.Millisecond)
	}
	select {
	case <-closed:
		t.Error("the server ended in the middle of it")
	case as.asked <- struct{}{}:
	}
	if t.Failed() {
		as.asked <- struct{}{} // so that the far end does not wait for ever
	}
	<-closed
	if got := next.row(v, cred.ID); got.RefreshedAt == nil {
		t.Errorf("what was renewed is lost: %+v", got)
	}
	if got, err := next.CredentialFor(w.ctx, s, "https://h/mcp"); err != nil || got != "Bearer a1" {
		t.Errorf("the next process: %q, %v", got, err)
	}
	if err := w.renew(w.ctx, next.row(v, cred.ID)); err == nil || as.count() != 1 {
		t.Errorf("after the end: %v, asked %d times", err, as.count())
	}
}

// A token endpoint that refuses in its own way is not asked again and again.
func TestARefusalWithStatus200IsBelieved(t *testing.T) {
	t.Parallel()
	as := newFakeAS(t)
	as.answer = func(w http.ResponseWriter) bool {
		_, _ = io.WriteString(w, `{"error":"bad_refresh_token"}`)
		return true
	}
	w := newVaultWorld(t, Config{})
	v := w.vault()
	w.oauth(v, as)
	s := w.sessionWith(v)
	for range 3 {
		w.pass(11 * time.Second)
		_, err := w.CredentialRefused(w.ctx, s, "https://h/mcp", "Bearer a0")
		wantErr(t, err, 401, "bad_refresh_token")
	}
	if as.count() != 1 {
		t.Errorf("asked %d times", as.count())
	}
}
