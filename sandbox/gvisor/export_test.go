package gvisor

import "github.com/bailey-platform/bailey/sandbox"

// Tag is how the tests find what a driver's boxes leave on the host.
func Tag(dir string) string { return sandbox.Tag(dir)[:8] }
