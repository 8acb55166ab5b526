// Package workload believes the identities of workloads: signed tokens (OpenID Connect)
// that a platform gives to a pod, a pipeline or a virtual machine, to show elsewhere. It
// checks such an assertion against the keys of its issuer, which it finds and keeps for
// a while, and against what a rule says of whose it must be.
//
// It is a mechanism: which issuers there are, what a matching identity may do and what
// is written down of it is control's business. Signatures are go-jose's work, and where
// keys come from package jwks's.
//
// Start reading at [Verifier.Verify].
package workload
