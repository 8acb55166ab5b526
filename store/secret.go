package store

// A Secret is a sealed secret of some object, as package vault makes them.
type Secret struct {
	Owner  string // the id of the object
	Field  string
	KeyID  string // of the key that it is wrapped by
	Sealed string
}

func scanSecret(row scanner) (*Secret, error) {
	var s Secret
	return &s, row.Scan(&s.Owner, &s.Field, &s.KeyID, &s.Sealed)
}

const secretColumns = "owner, field, key_id, sealed"

// PutSecret writes a secret, in place of one that is there.
func (tx *Tx) PutSecret(s *Secret) error {
	_, err := tx.exec(`INSERT INTO secrets (owner, field, key_id, sealed) VALUES (?, ?, ?, ?)
		ON CONFLICT (owner, field) DO UPDATE SET key_id = excluded.key_id, sealed = excluded.sealed`,
		s.Owner, s.Field, s.KeyID, s.Sealed)
	return err
}

// Secrets reads the secrets of an object.
func (tx *Tx) Secrets(owner string) ([]*Secret, error) {
	return collect(tx, scanSecret, "SELECT "+secretColumns+" FROM secrets WHERE owner = ? ORDER BY field", owner)
}

// Secret reads one secret of an object.
func (tx *Tx) Secret(owner, field string) (*Secret, error) {
	return one(tx, scanSecret, "SELECT "+secretColumns+" FROM secrets WHERE owner = ? AND field = ?", owner, field)
}

// ResealSecret replaces how a secret is sealed, if it is still what was read.
func (tx *Tx) ResealSecret(was, is *Secret) (done bool, err error) {
	n, err := tx.exec("UPDATE secrets SET key_id = ?, sealed = ? WHERE owner = ? AND field = ? AND sealed = ?",
		is.KeyID, is.Sealed, was.Owner, was.Field, was.Sealed)
	return n == 1, err
}

// DropSecrets removes all secrets of an object.
func (tx *Tx) DropSecrets(owner string) error {
	_, err := tx.exec("DELETE FROM secrets WHERE owner = ?", owner)
	return err
}

// DropSecret removes one secret of an object, which may not be there.
func (tx *Tx) DropSecret(owner, field string) error {
	_, err := tx.exec("DELETE FROM secrets WHERE owner = ? AND field = ?", owner, field)
	return err
}

// SecretsNotUnder reads secrets that another key than keyID wraps, in order of owner and
// field, after those.
func (tx *Tx) SecretsNotUnder(keyID, owner, field string, limit int) ([]*Secret, error) {
	return collect(tx, scanSecret, "SELECT "+secretColumns+` FROM secrets WHERE key_id <> ? AND (owner > ? OR owner = ? AND field > ?)
		ORDER BY owner, field LIMIT ?`, keyID, owner, owner, field, limit)
}

// SecretKeys reads the ids of the keys that secrets are wrapped by, and how many are by
// each.
func (tx *Tx) SecretKeys() (map[string]int64, error) {
	type use struct {
		id string
		n  int64
	}
	uses, err := collect(tx, func(row scanner) (u use, err error) {
		err = row.Scan(&u.id, &u.n)
		return u, err
	}, "SELECT key_id, count(*) FROM secrets GROUP BY key_id")
	keys := map[string]int64{}
	for _, u := range uses {
		keys[u.id] = u.n
	}
	return keys, err
}
