// Package api holds Bailey's words: the nouns of the public HTTP API with their
// JSON shapes, identifiers, limits, validation and the error type. Everything
// else in Bailey speaks in these types.
//
// It imports only the standard library, starts no goroutine, reads no clock and
// makes no random number, so any package may use it. The shapes follow the
// public Claude Managed Agents API as described by the official SDKs; what is
// Bailey's own is marked as an extension.
//
// Start reading at [Session] and [Event].
package api
