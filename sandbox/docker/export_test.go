package docker

// Tag names the driver whose Options.Root this is.
func Tag(root string) string { return tagOf(root) }
