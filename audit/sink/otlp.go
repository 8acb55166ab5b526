package sink

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/url"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/bailey-platform/bailey/audit"
)

// An otlp sends OTLP log records and knows from the answer that they were taken.
type otlp struct {
	name     string
	address  string // host:port
	exporter *otlploghttp.Exporter
	provider *sdklog.LoggerProvider
	logger   log.Logger
	batch    *batch
	client   *http.Client
}

func newOTLP(name string, u *url.URL, conf *tls.Config) (*otlp, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = conf
	client := &http.Client{
		Transport: transport,
		// A redirect would take the record, and the credential, elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	path := u.Path
	if path == "" || path == "/" {
		path = "/v1/logs"
	}
	options := []otlploghttp.Option{
		otlploghttp.WithEndpoint(u.Host), otlploghttp.WithURLPath(path), otlploghttp.WithHTTPClient(client),
		// The log tries again, and refuses meanwhile; nobody else should.
		otlploghttp.WithRetry(otlploghttp.RetryConfig{Enabled: false}),
	}
	if conf == nil {
		options = append(options, otlploghttp.WithInsecure())
	}
	exporter, err := otlploghttp.New(context.Background(), options...)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		if port = "80"; conf != nil {
			port = "443"
		}
	}
	s := &otlp{name: name, address: net.JoinHostPort(u.Hostname(), port), exporter: exporter, batch: new(batch), client: client}
	s.provider = sdklog.NewLoggerProvider(
		sdklog.WithProcessor(s.batch),
		sdklog.WithResource(resource.NewSchemaless(attribute.String("service.name", "bailey"))),
		sdklog.WithAttributeValueLengthLimit(-1),
	)
	s.logger = s.provider.Logger("github.com/bailey-platform/bailey/audit")
	return s, nil
}

func (s *otlp) Name() string { return s.name }

// check connects: what a collector makes of a record shows when it gets one.
func (s *otlp) check(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (s *otlp) Write(ctx context.Context, lines []audit.Line) error {
	s.batch.records = nil
	for _, l := range lines {
		var r log.Record
		r.SetTimestamp(l.Time)
		r.SetObservedTimestamp(l.Time)
		r.SetEventName(l.Action)
		r.SetSeverity(log.SeverityInfo)
		r.SetBody(attribute.StringValue(string(l.JSON)))
		r.AddAttributes(attributes(l)...)
		s.logger.Emit(ctx, r)
	}
	return s.exporter.Export(ctx, s.batch.records)
}

// attributes are what records are most often searched by.
func attributes(l audit.Line) []attribute.KeyValue {
	out := []attribute.KeyValue{attribute.Int64("audit.seq", int64(l.Seq)), attribute.String("audit.hash", l.Hash)}
	var f audit.Fields
	_ = json.Unmarshal(l.JSON, &f) // the log's own line
	for _, a := range []struct{ name, value string }{
		{"audit.actor", f.Actor}, {"audit.request_id", f.Request}, {"audit.environment_id", f.Environment},
		{"audit.session_id", f.Session}, {"audit.call_id", f.Call}, {"audit.outcome", f.Outcome},
	} {
		if a.value != "" {
			out = append(out, attribute.String(a.name, a.value))
		}
	}
	return out
}

func (s *otlp) Close() error {
	err := s.exporter.Shutdown(context.Background())
	s.client.CloseIdleConnections()
	return err
}

// A batch collects what a provider makes of records. The SDK's own processors
// keep an export's error to themselves; whether it was taken is all that matters
// here.
type batch struct{ records []sdklog.Record }

func (*batch) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

func (b *batch) OnEmit(_ context.Context, r *sdklog.Record) error {
	b.records = append(b.records, r.Clone())
	return nil
}

func (*batch) Shutdown(context.Context) error   { return nil }
func (*batch) ForceFlush(context.Context) error { return nil }
