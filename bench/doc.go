// Package bench measures the assembled system: a real plane over a real
// database, the scripted model, real workers and boxes, all on loopback. It holds
// benchmarks only; `make bench` runs them and docs/performance.md explains them.
//
// Each figure that is a comparison is taken side by side in one run, so that it
// says something on a noisy machine too.
package bench
