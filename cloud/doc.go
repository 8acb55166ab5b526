// Package cloud runs the sessions of cloud environments on the server's own host. For
// each such environment that has work it runs a field of its own: the very worker that
// customers run, with network rules and packages from the environment's configuration
// instead of a file, and with the server's API in reach within the process.
//
// It knows nothing of how the plane decides (package control): it is told which
// environments have work, and everything else goes through the public API, as with
// any worker. What an operator wants of the boxes (backend, image, limits, further
// network rules, credentials) is a worker.yaml.
//
// Start reading at [Cloud.Run].
package cloud
