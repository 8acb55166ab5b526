// Package sink has the second places that an audit log can be written to: another
// file, syslog, OpenTelemetry, standard output. Each is an [audit.Sink]; which of
// them a record must have reached before its effect is the log's business.
//
// Start reading at [Open], whose comment is the grammar that settings use.
package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/bailey-platform/bailey/audit"
)

// Forms says what [Open] takes, a line each, for help texts.
const Forms = `file:PATH                     another file, on another disk if it can be
syslog:PATH                   a syslog daemon's socket; /dev/log if there is no path
syslog+tcp://HOST:PORT        RFC 5424 over TCP, also syslog+tls:// and syslog+udp://
otlp+https://HOST[:PORT]      OpenTelemetry logs over HTTP, also otlp+http://
stdout:                       JSON lines on standard output`

// Open opens the sink that text names. Nothing is sent yet, and a server that
// cannot be reached is no error: that shows at the first write.
//
//   - file:PATH appends the lines to a file of the same form as the log itself,
//     which verifies like it. It knows what it has and is given what it missed.
//   - syslog:PATH, syslog+tcp://HOST:PORT, syslog+tls://…, syslog+udp://… send
//     RFC 5424 messages of facility 13 (log audit), the line as the message. TCP
//     and TLS frame them by counting octets. With TLS, ?ca=FILE names the
//     authorities to trust.
//   - otlp+https://HOST, otlp+http://HOST send OTLP log records over HTTP, the
//     line as the body, to the path given or /v1/logs. Headers, for a credential,
//     come from OTEL_EXPORTER_OTLP_HEADERS. ?ca=FILE as above.
//   - stdout: writes to stdout, which may be nil if that is not to be had.
//
// ?required=true makes the sink a required one. UDP cannot be: nobody says
// whether anything arrived.
func Open(text string, stdout io.Writer) (audit.SinkOptions, error) {
	var none audit.SinkOptions
	u, err := url.Parse(text)
	if err != nil {
		return none, fmt.Errorf("an audit sink is not one of:\n%s", Forms) // without the text, which may hold anything
	}
	if u.User != nil {
		return none, fmt.Errorf("audit sink %s: its address has no place for a credential; for OTLP there is OTEL_EXPORTER_OTLP_HEADERS", u.Scheme)
	}
	q := u.Query()
	required := q.Get("required") == "true"
	ca := q.Get("ca")
	for key, values := range q {
		known := key == "required" && (values[0] == "true" || values[0] == "false") || key == "ca" && values[0] != ""
		if !known || len(values) > 1 {
			return none, fmt.Errorf("audit sink %s: %s is not understood; there are required=true and ca=FILE", name(text), key)
		}
	}
	path := u.Opaque
	if path == "" {
		path = u.Path
	}
	secure := strings.HasSuffix(u.Scheme, "+tls") || strings.HasSuffix(u.Scheme, "+https")
	if ca != "" && !secure {
		return none, fmt.Errorf("audit sink %s: ca is for tls and https", name(text))
	}
	var conf *tls.Config
	if secure {
		if conf, err = tlsConfig(u.Hostname(), ca); err != nil {
			return none, fmt.Errorf("audit sink %s: %w", name(text), err)
		}
	}
	var s audit.Sink
	switch u.Scheme {
	case "file":
		if path == "" || u.Host != "" {
			return none, fmt.Errorf("audit sink %s names no file: file:PATH", name(text))
		}
		s = &file{name: name(text), path: path}
	case "syslog":
		if path == "" {
			path = "/dev/log"
		}
		s = newSyslog(name(text), "unix", path, nil)
	case "syslog+tcp", "syslog+tls", "syslog+udp":
		if u.Hostname() == "" || u.Port() == "" {
			return none, fmt.Errorf("audit sink %s names no host and port", name(text))
		}
		network := "tcp"
		if u.Scheme == "syslog+udp" {
			network = "udp"
			if required {
				return none, fmt.Errorf("audit sink %s cannot be required: with UDP nobody says whether anything arrived; use tcp or tls", name(text))
			}
		}
		s = newSyslog(name(text), network, u.Host, conf)
	case "otlp+http", "otlp+https":
		if u.Hostname() == "" {
			return none, fmt.Errorf("audit sink %s names no host", name(text))
		}
		if s, err = newOTLP(name(text), u, conf); err != nil {
			return none, fmt.Errorf("audit sink %s: %w", name(text), err)
		}
	case "stdout":
		if stdout == nil {
			return none, errors.New("audit sink stdout: there is no standard output here")
		}
		s = stream{name(text), stdout}
	default:
		return none, fmt.Errorf("audit sink %q is not one of:\n%s", name(text), Forms)
	}
	return audit.SinkOptions{Sink: s, Required: required}, nil
}

// Check says why the next write to a sink would fail, as far as that can be known without
// writing: that its file could not be made, or that nobody listens there. A sink that a log
// has open already is as good as any other.
func Check(ctx context.Context, s audit.SinkOptions) error {
	if c, ok := s.Sink.(interface{ check(context.Context) error }); ok {
		return c.check(ctx)
	}
	return nil
}

// OpenAll opens the sinks of a list, one after the other with commas between
// them. With an error none is left open.
func OpenAll(list string, stdout io.Writer) ([]audit.SinkOptions, error) {
	var all []audit.SinkOptions
	for text := range strings.SplitSeq(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		s, err := Open(text, stdout)
		if err != nil {
			for _, open := range all {
				_ = open.Close()
			}
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// name is a sink's text without its parameters.
func name(text string) string {
	text, _, _ = strings.Cut(text, "?")
	return text
}

func tlsConfig(host, ca string) (*tls.Config, error) {
	conf := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if ca == "" {
		return conf, nil
	}
	b, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s has no certificate", ca)
	}
	return conf, nil
}
