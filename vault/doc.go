// Package vault keeps secrets that have to be given back: credentials of MCP servers,
// values of environment variables, tokens of tunnels. It is the mechanism alone. Whose
// a secret is, who may use it and where it is stored is control's business, and the
// database is never seen from here.
//
// Sealing is by envelope: each secret is encrypted with a random key of its own, and
// that key is wrapped by a key-encryption key that stays where it is: in a file that is
// the server's alone, in HashiCorp Vault's transit engine, or in AWS KMS. A sealed
// value names the key it was wrapped by, so that keys can be rotated while everything
// runs, and it is bound to its [Owner]: put in another's place it does not open.
//
//   - vault.go seals, opens and re-wraps; sealed.go is the form on disk.
//   - key.go is the seam to the keys; file.go, transit.go and awskms.go are those.
//   - authorize.go gets a person's consent by OAuth, refresh.go renews it without one.
//   - probe.go tries a credential against its MCP server.
//
// Start reading at [Vault.Seal].
package vault
