// Package remote joins an edge to its plane over the plane's public HTTP API: it
// registers the edge, gets its certificate and renews it, and is the [edge.Plane] that
// the edge asks and reports to. An edge within the server's process is joined by the
// same lines, over a client that needs no network.
//
// It knows the plane only through package client, and of tunnels no more than their
// ids. Start reading at [Run].
package remote
