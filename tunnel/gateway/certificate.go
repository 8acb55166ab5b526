package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certificates is the pair that the gateway proves itself with. It is read anew when its
// files change, by polling: what replaces them may be an editor, a renewal, or a
// Kubernetes mount whose ..data link is swapped, and all of them show in what the files
// hold.
type certificates struct {
	cert, key string
	log       *slog.Logger
	metrics   *metrics

	pair atomic.Pointer[tls.Certificate]

	mu        sync.Mutex
	certText  []byte // as last read, whether it was taken or not
	keyText   []byte
	warned    time.Duration // before its expiry, of the pair in use
	complaint string        // the last, so that it is made once
}

// pollEvery is how often files are looked at.
const pollEvery = 5 * time.Second

// newCertificates reads the pair.
func newCertificates(cert, key string, log *slog.Logger, m *metrics) (*certificates, error) {
	c := &certificates{cert: cert, key: key, log: log, metrics: m}
	if _, err := c.reload(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *certificates) current() *tls.Certificate { return c.pair.Load() }

// reload reads the files and takes the pair in them on, if it is one. Otherwise the pair
// in use stays: of two files that are replaced one after the other, the first is seen
// alone for a while.
func (c *certificates) reload() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	certText, err := os.ReadFile(c.cert)
	if err != nil {
		return false, fmt.Errorf("certificate: %w", err)
	}
	keyText, err := os.ReadFile(c.key)
	if err != nil {
		return false, fmt.Errorf("key of the certificate: %w", err)
	}
	if bytes.Equal(certText, c.certText) && bytes.Equal(keyText, c.keyText) {
		return false, nil
	}
	// What could not be used is not complained about until it changes again.
	c.certText, c.keyText = certText, keyText
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return false, fmt.Errorf("certificate %s: %w", c.cert, err)
	}
	if len(pair.Certificate) > 1 {
		c.log.Warn("the certificate file holds a chain, and the platform accepts no intermediates: the certificate has to be signed by the registered CA itself", "file", c.cert)
	}
	if c.pair.Load() != nil {
		c.log.Info("certificate read anew", "file", c.cert, "expires", pair.Leaf.NotAfter)
	}
	c.pair.Store(&pair)
	c.warned = 0
	c.metrics.expiry.Set(float64(pair.Leaf.NotAfter.Unix()))
	return true, nil
}

// poll reads the files anew now and then, and warns before the certificate expires, until
// ctx ends.
func (c *certificates) poll(ctx context.Context) {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		c.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (c *certificates) look(now time.Time) {
	changed, err := c.reload()
	switch {
	case err != nil:
		c.complain(err)
	case changed:
		c.metrics.reloads.WithLabelValues("certificate", "ok").Inc()
	}
	c.warn(now)
}

func (c *certificates) complain(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text := err.Error(); text != c.complaint {
		c.complaint = text
		c.metrics.reloads.WithLabelValues("certificate", "failed").Inc()
		c.log.Error("the certificate stays the one that it was", "error", err)
	}
}

// warnings are how long before its expiry a certificate is warned about.
var warnings = []time.Duration{24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour}

// warn says once for each threshold that the certificate is about to expire.
func (c *certificates) warn(now time.Time) {
	expires := c.current().Leaf.NotAfter
	left := expires.Sub(now)
	for _, before := range warnings {
		if left > before {
			continue
		}
		c.mu.Lock()
		told := c.warned != 0 && c.warned <= before
		c.warned = before
		c.mu.Unlock()
		if told {
			return
		}
		level, text := slog.LevelWarn, "the certificate expires soon; `bailey gateway renew` makes another"
		if left <= 0 {
			level, text = slog.LevelError, "the certificate has expired: no call comes through; `bailey gateway renew` makes another"
		}
		c.log.Log(context.Background(), level, text, "file", c.cert, "expires", expires, "left", left.Round(time.Minute))
		return
	}
}

// usable returns why the pair in use cannot be used now, or nil.
func (c *certificates) usable(now time.Time) error {
	leaf := c.current().Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate has expired, on %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
