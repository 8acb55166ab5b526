//go:build linux && !race

// Runsc is gVisor by itself: without the rest of bailey, which would make every box slower
// to start and larger. Releases embed it, see package sandbox/agentbin.
package main

import "github.com/bailey-platform/bailey/sandbox/gvisor/engine"

func main() { engine.Main() }
