// Package daemon builds the plane of Bailey (`bailey serve`) from a [Config] and
// runs it: store, rules, model client, agent loop, HTTP API. It holds the wiring
// and nothing else: no rule of the product, no route, no SQL, no command line.
// Tests and `bailey demo` build the same [Daemon] in a temporary directory on
// port 0.
//
// Start reading at [Config], then [New] and [Daemon.Run].
package daemon
