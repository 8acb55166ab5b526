package oci

import "github.com/bailey-platform/bailey/sandbox"

// Tag names the driver whose Options.Root this is.
func Tag(root string) string { return sandbox.Tag(root)[:8] }
