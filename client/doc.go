// Package client is a small client of Bailey's HTTP API, typed over package api.
// The command line uses it; programs of customers use the official SDKs, which
// lack only what is Bailey's own: keys, and streams that resume.
//
// It knows nothing of the server's insides, reads no environment variable and no
// file, and logs nothing.
//
// Start reading at [Client.do] for single calls and at [Client.Follow] for streams.
package client
