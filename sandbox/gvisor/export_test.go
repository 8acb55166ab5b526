package gvisor

// Tag is how the tests find what a driver's boxes leave on the host.
var Tag = tagOf
