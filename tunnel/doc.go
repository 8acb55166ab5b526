// Package tunnel is what both ends of an MCP tunnel, and the edge between them, have
// in common: the token a connector attaches with, and the rules for certificates of
// the inner TLS. It is a mechanism: it knows no plane, opens no connection of its own
// and keeps nothing.
//
// Start reading at [Token] and [VerifyLeaf].
package tunnel
