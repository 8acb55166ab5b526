package ns

// Tag is the name of the driver at dir on the host.
var Tag = tagOf
