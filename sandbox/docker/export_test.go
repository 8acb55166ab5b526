package docker

import "github.com/bailey-platform/bailey/sandbox"

// Tag names the driver whose Options.Root this is.
func Tag(root string) string { return sandbox.PathTag(root) }
