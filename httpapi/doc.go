// Package httpapi is the HTTP face of the plane: routes, headers, credentials,
// decoding, errors and event streams. It turns a request into one call of package
// control and the answer into JSON, and it writes one log record about it.
//
// It holds no rules: what an operation means, who may touch which object and how
// long a list may be are control's. It never sees SQL, a model's answer or a
// worker's insides.
//
// Start reading at routes.go, the whole surface on one screen, and then at
// [Server.ServeHTTP], the way of every request. docs/compatibility.md is made from
// the same table.
package httpapi
