// Package egress decides what may leave: which names may be asked for, which hosts,
// addresses and ports connected to, and which requests made. It is the one policy of
// every box, whatever the backend, and it dials what it has allowed.
//
// A [Policy] is what an operator writes. [Policy.Compile] checks it and makes [Rules],
// which answer in [Verdict]s. Whoever asks has parsed the host with [ParseHost] first:
// there is one way to read a host's name here, and a name that could be read in two
// ways is refused.
//
// # How the rules are read
//
// Nothing is allowed unless a rule allows it, and a thing is allowed if any rule allows
// it: the order of the rules does not matter, and a further rule never forbids.
//
// A host pattern is a name ("api.example.com"), "*.example.com" for names with exactly
// one label more, or "**.example.com" for names with one label more or several. Neither
// wildcard means example.com itself.
//
// Addresses that are not of the public internet (see [Class]) are refused, as
// destination and as what a name resolves to, also where everything else is allowed. A
// cidrs rule opens them, if it lies within the special range: 10.1.0.0/16 opens that
// part of 10.0.0.0/8, while 0.0.0.0/0 opens no private address. A metadata service is a
// range of a single address, so only a rule for that very address opens it.
//
// The package does no input or output but through the [Dialer]; it knows nothing of
// boxes. Start reading at [Policy].
package egress
