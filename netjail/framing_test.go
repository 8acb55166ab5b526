package netjail

import (
	"errors"
	"strings"
	"testing"
)

// What the framing itself lets pass, whatever the parser behind it would say.
func TestFraming(t *testing.T) {
	t.Parallel()
	const host = "Host: a\r\n"
	post := func(header, body string) string { return "POST / HTTP/1.1\r\n" + host + header + "\r\n" + body }
	for name, c := range map[string]struct {
		stream string
		want   error
	}{
		"a request":                 {"GET /a?b=%20 HTTP/1.1\r\n" + host + "X: \ta b\t \r\nY:\r\n\r\n", nil},
		"HTTP/1.0":                  {"GET / HTTP/1.0\r\n" + host + "\r\n", nil},
		"two requests":              {"GET / HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", nil},
		"a body":                    {post("Content-Length: 3\r\n", "\n\x00\rGET / HTTP/1.1\r\n"+host+"\r\n"), nil},
		"no body":                   {post("Content-Length: 0\r\n", "GET / HTTP/1.1\r\n"+host+"\r\n"), nil},
		"chunks":                    {post("Transfer-Encoding: Chunked\r\n", "3\r\n\n\x00\r\r\nA\r\n0123456789\r\n00a\r\n0123456789\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n"+host+"\r\n"), nil},
		"half a request":            {"GET / HT", nil},
		"another version":           {"GET / HTTP/2.0\r\n", errRequestLine},
		"no version":                {"GET /\r\n", errRequestLine},
		"a bad method":              {"G(T / HTTP/1.1\r\n", errRequestLine},
		"no method":                 {" / HTTP/1.1\r\n", errRequestLine},
		"two spaces":                {"GET  / HTTP/1.1\r\n", errRequestLine},
		"a space at the end":        {"GET / HTTP/1.1 \r\n", errRequestLine},
		"an empty line at first":    {"\r\nGET / HTTP/1.1\r\n", errRequestLine},
		"a tab in the path":         {"GET /\tx HTTP/1.1\r\n", errRequestLine},
		"DEL in the path":           {"GET /\x7f HTTP/1.1\r\n", errRequestLine},
		"other bytes in the path":   {"GET /\xc3\xa9 HTTP/1.1\r\n", errRequestLine},
		"a whole URL":               {"GET http://b/ HTTP/1.1\r\n", errProxyRequest},
		"CONNECT":                   {"CONNECT /a HTTP/1.1\r\n", errProxyRequest},
		"an asterisk":               {"OPTIONS * HTTP/1.1\r\n", errProxyRequest},
		"LF alone":                  {"GET / HTTP/1.1\n", errBareLine},
		"LF alone in a header":      {"GET / HTTP/1.1\r\nX: a\n", errBareLine},
		"CR alone":                  {"GET / HTTP/1.1\r\nX: a\rb\r\n", errBareLine},
		"CR twice":                  {"GET / HTTP/1.1\r\nX: a\r\r\n", errBareLine},
		"NUL":                       {"GET / HTTP/1.1\r\nX: a\x00\r\n", errBareLine},
		"a control character":       {"GET / HTTP/1.1\r\nX: a\x0bb\r\n", errHeader},
		"DEL in a header":           {"GET / HTTP/1.1\r\nX: a\x7fb\r\n", errHeader},
		"no colon":                  {"GET / HTTP/1.1\r\nX\r\n", errHeader},
		"no name":                   {"GET / HTTP/1.1\r\n: x\r\n", errHeader},
		"a space in the name":       {"GET / HTTP/1.1\r\nX : x\r\n", errHeader},
		"a space before the name":   {"GET / HTTP/1.1\r\n X: x\r\n", errHeader},
		"no host":                   {"GET / HTTP/1.1\r\n\r\n", errHosts},
		"two hosts":                 {"GET / HTTP/1.1\r\n" + host + "host: a\r\n\r\n", errHosts},
		"two lengths":               {post("Content-Length: 0\r\nContent-Length: 0\r\n", ""), errLength},
		"a length and chunks":       {post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", ""), errLength},
		"chunks twice":              {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), errLength},
		"chunks in HTTP/1.0":        {"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", errLength},
		"another encoding":          {post("Transfer-Encoding: identity\r\n", ""), errLength},
		"a length of nothing":       {post("Content-Length:\r\n", ""), errLength},
		"a length that is long":     {post("Content-Length: "+strings.Repeat("0", 19)+"\r\n", ""), errLength},
		"a length with a sign":      {post("Content-Length: +1\r\n", ""), errLength},
		"a chunk without size":      {post("Transfer-Encoding: chunked\r\n", "\r\n"), errChunk},
		"a chunk of a long size":    {post("Transfer-Encoding: chunked\r\n", strings.Repeat("0", 16)+"\r\n"), errChunk},
		"a chunk of no number":      {post("Transfer-Encoding: chunked\r\n", "g\r\n"), errChunk},
		"a chunk with an extension": {post("Transfer-Encoding: chunked\r\n", "1;a=b\r\n"), errChunk},
		"a chunk with a space":      {post("Transfer-Encoding: chunked\r\n", "1 \r\n"), errChunk},
		"a chunk that goes on":      {post("Transfer-Encoding: chunked\r\n", "1\r\nab\r\n"), errChunk},
		"a trailer with a length":   {post("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 1\r\n"), errHeader},
		"a trailer with a host":     {post("Transfer-Encoding: chunked\r\n", "0\r\nHOST: b\r\n"), errHeader},
		"a malformed trailer":       {post("Transfer-Encoding: chunked\r\n", "0\r\nx\r\n"), errHeader},
		"a head without end":        {"GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", headMax), errHeadTooLong},
		"a line without end":        {strings.Repeat("G", 2*headMax), errHeadTooLong},
		"a trailer without end":     {post("Transfer-Encoding: chunked\r\n", "0\r\n"+strings.Repeat("X: y\r\n", headMax)), errHeadTooLong},
	} {
		passed, err := through([]byte(c.stream), len(c.stream))
		if !errors.Is(err, c.want) || err == nil && len(passed) != len(c.stream) {
			t.Errorf("%s: passed %d bytes of %d, %v; want %v", name, len(passed), len(c.stream), err, c.want)
		}
	}
}
