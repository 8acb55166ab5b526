// Package gateway is the customer's end of a tunnel. It ends the inner TLS, so it is the
// first place where a call can be read and the last where it can be refused: it routes by
// host to private MCP servers, and checks what may be called, by whom, and the address
// that is dialled.
//
// Calls come in on a [net.Listener]; that of package tunnel/connect hands out the streams
// of a tunnel, and any other serves as well. What the platform sent is passed on as it
// came, byte for byte where nothing asks for more: no body is kept, compressed or put
// together anew, no redirect followed, nothing sent twice.
//
//	server.go     inner TLS and the connections in it
//	conn.go       HTTP/1.1 with the platform; h2.go, HTTP/2
//	message.go    the heads and bodies of HTTP/1.1, read strictly
//	call.go       one call: what it may do, and where it goes
//	upstream.go   HTTP/1.1 with a private server; stdio.go, a program that speaks MCP
//	inspect.go    what a body asks for; tools.go and filter.go, what may be called and shown
//	address.go    which addresses may be dialled; auth.go and jwks.go, who may call
//	config.go     gateway.yaml; proxyfile.go, the file of mcp-proxy; reload.go, changes of them
//	setup.go      a CA and certificates of the customer's own; check.go, the way hop by hop
//
// HTTP/1.1 is read and written here and not by net/http, for three reasons. A request
// that two programs could read differently is refused, not repaired. Nothing is ever sent
// a second time, which a general transport does for requests it holds to be harmless. And
// a call costs one read and one write on each side and no goroutine of its own, where a
// general proxy hands it through six.
//
// The package is the field's: it knows the plane only as whoever calls, and of package
// tunnel its words. Start reading at [Gateway].
package gateway
