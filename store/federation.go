package store

import (
	"time"

	"github.com/bailey-platform/bailey/api"
)

// -- service accounts --------------------------------------------------------------

// PutServiceAccount writes a service account. A name that another has which is not
// archived is [ErrDuplicate].
func (tx *Tx) PutServiceAccount(a *api.ServiceAccount) error {
	_, err := tx.exec(`INSERT INTO service_accounts (id, name, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body, archived_at = excluded.archived_at`,
		a.ID, a.Name, encode(a), micros(a.CreatedAt), optMicros(a.ArchivedAt))
	return err
}

// ServiceAccount reads a service account.
func (tx *Tx) ServiceAccount(id api.ServiceAccountID) (*api.ServiceAccount, error) {
	return one(tx, scanBody[api.ServiceAccount], "SELECT body FROM service_accounts WHERE id = ?", id)
}

// LockServiceAccount reads a service account that the transaction is going to change.
func (tx *Tx) LockServiceAccount(id api.ServiceAccountID) (*api.ServiceAccount, error) {
	return one(tx, scanBody[api.ServiceAccount], "SELECT body FROM service_accounts WHERE id = ?"+tx.d.forUpdate, id)
}

// PinServiceAccount reads a service account and keeps who locks it waiting until the
// transaction ends.
func (tx *Tx) PinServiceAccount(id api.ServiceAccountID) (*api.ServiceAccount, error) {
	return one(tx, scanBody[api.ServiceAccount], "SELECT body FROM service_accounts WHERE id = ?"+tx.d.forShare, id)
}

// ServiceAccounts lists service accounts by creation.
func (tx *Tx) ServiceAccounts(archived bool, win Window) ([]*api.ServiceAccount, error) {
	return bodies[api.ServiceAccount](tx, "service_accounts", archived, win)
}

// -- issuers -----------------------------------------------------------------------

// PutIssuer writes an issuer. A name that another has which is not archived is
// [ErrDuplicate].
func (tx *Tx) PutIssuer(i *api.FederationIssuer) error {
	_, err := tx.exec(`INSERT INTO federation_issuers (id, name, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body, archived_at = excluded.archived_at`,
		i.ID, i.Name, encode(i), micros(i.CreatedAt), optMicros(i.ArchivedAt))
	return err
}

// Issuer reads an issuer.
func (tx *Tx) Issuer(id api.IssuerID) (*api.FederationIssuer, error) {
	return one(tx, scanBody[api.FederationIssuer], "SELECT body FROM federation_issuers WHERE id = ?", id)
}

// LockIssuer reads an issuer that the transaction is going to change, or rules of it.
func (tx *Tx) LockIssuer(id api.IssuerID) (*api.FederationIssuer, error) {
	return one(tx, scanBody[api.FederationIssuer], "SELECT body FROM federation_issuers WHERE id = ?"+tx.d.forUpdate, id)
}

// PinIssuer reads an issuer and keeps who locks it waiting until the transaction ends.
func (tx *Tx) PinIssuer(id api.IssuerID) (*api.FederationIssuer, error) {
	return one(tx, scanBody[api.FederationIssuer], "SELECT body FROM federation_issuers WHERE id = ?"+tx.d.forShare, id)
}

// Issuers lists issuers by creation.
func (tx *Tx) Issuers(archived bool, win Window) ([]*api.FederationIssuer, error) {
	return bodies[api.FederationIssuer](tx, "federation_issuers", archived, win)
}

// -- rules -------------------------------------------------------------------------

// PutRule writes a rule. A name that another has which is not archived is
// [ErrDuplicate].
func (tx *Tx) PutRule(r *api.FederationRule) error {
	_, err := tx.exec(`INSERT INTO federation_rules (id, name, issuer_id, service_account_id, body, created_at, archived_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, service_account_id = excluded.service_account_id, body = excluded.body, archived_at = excluded.archived_at`,
		r.ID, r.Name, r.IssuerID, r.Target.ID, encode(r), micros(r.CreatedAt), optMicros(r.ArchivedAt))
	return err
}

// Rule reads a rule.
func (tx *Tx) Rule(id api.RuleID) (*api.FederationRule, error) {
	return one(tx, scanBody[api.FederationRule], "SELECT body FROM federation_rules WHERE id = ?", id)
}

// LockRule reads a rule that the transaction is going to change, or to mint by.
func (tx *Tx) LockRule(id api.RuleID) (*api.FederationRule, error) {
	return one(tx, scanBody[api.FederationRule], "SELECT body FROM federation_rules WHERE id = ?"+tx.d.forUpdate, id)
}

// Rules lists rules by creation.
func (tx *Tx) Rules(archived bool, win Window) ([]*api.FederationRule, error) {
	return bodies[api.FederationRule](tx, "federation_rules", archived, win)
}

// LiveRules reads the rules that are not archived and lead from an issuer, or to a
// service account; "" is any.
func (tx *Tx) LiveRules(issuer api.IssuerID, account api.ServiceAccountID) ([]*api.FederationRule, error) {
	var w where
	w.and("archived_at IS NULL")
	if issuer != "" {
		w.and("issuer_id = ?", issuer)
	}
	if account != "" {
		w.and("service_account_id = ?", account)
	}
	return collect(tx, scanBody[api.FederationRule], "SELECT body FROM federation_rules"+w.String()+" ORDER BY id", w.args...)
}

// bodies lists what is kept as one body, by creation.
func bodies[T any](tx *Tx, table string, archived bool, win Window) ([]*T, error) {
	var w where
	if !archived {
		w.and("archived_at IS NULL")
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanBody[T], "SELECT body FROM "+table+w.String()+tail, w.args...)
}

// -- the exchange ------------------------------------------------------------------

// MarkSeen notes that an assertion was exchanged, until it expires. One that was
// already is [ErrDuplicate]. What has expired is forgotten.
func (tx *Tx) MarkSeen(issuer api.IssuerID, hash string, expires time.Time) error {
	if _, err := tx.exec("DELETE FROM federation_seen WHERE expires_at <= ?", micros(tx.Now)); err != nil {
		return err
	}
	// By the count of rows, as an error would end a transaction of PostgreSQL's.
	n, err := tx.exec("INSERT INTO federation_seen (issuer_id, hash, expires_at) VALUES (?, ?, ?) ON CONFLICT (issuer_id, hash) DO NOTHING",
		issuer, hash, micros(expires))
	if err == nil && n == 0 {
		return ErrDuplicate
	}
	return err
}

// exchangesMax is how many attempts are remembered of each rule.
const exchangesMax = 500

// InsertExchange notes an attempt to exchange an assertion, and forgets the oldest ones
// of the rule.
func (tx *Tx) InsertExchange(e *api.FederationExchange) error {
	_, err := tx.exec("INSERT INTO federation_events (id, rule_id, body, created_at) VALUES (?, ?, ?, ?)",
		e.ID, e.RuleID, encode(e), micros(e.CreatedAt))
	if err != nil {
		return err
	}
	_, err = tx.exec(`DELETE FROM federation_events WHERE rule_id = ? AND created_at <
		(SELECT created_at FROM federation_events WHERE rule_id = ? ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?)`,
		e.RuleID, e.RuleID, exchangesMax-1)
	return err
}

// Exchanges lists attempts by time, of one rule or with rule "" of all.
func (tx *Tx) Exchanges(rule api.RuleID, win Window) ([]*api.FederationExchange, error) {
	var w where
	if rule != "" {
		w.and("rule_id = ?", rule)
	}
	tail := w.page("created_at", "id", win)
	return collect(tx, scanBody[api.FederationExchange], "SELECT body FROM federation_events"+w.String()+tail, w.args...)
}
