// Package cli is the command line of Bailey: one file a noun, each command's
// help, flags and code side by side. A command reads its input, asks the plane
// through package client (or builds a part and runs it), and prints; it holds no
// rule of the product.
//
// Start reading at [Main]. What a failure's exit status is stands in exit.go,
// how results look in output.go, how a session looks in timeline.go.
package cli
