// Package field assembles the worker's side: it reads worker.yaml, chooses a sandbox
// backend for each environment, opens the audit record and the networks of boxes, and
// runs one [worker.Worker] an environment. It is to the worker what package daemon is to
// the plane.
//
// It decides nothing about sessions (package worker), nor what may pass a network
// (package egress), nor how a box is made (package sandbox); it knows which of them an
// operator asked for, and refuses what it cannot give rather than give less.
//
// Start reading at [Config], which is worker.yaml, then [Field.Run].
package field
