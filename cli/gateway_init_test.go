package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRoutesOfInit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		route string
		want  any // in the file
	}{
		{"docs=http://10.0.0.5:8080", "http://10.0.0.5:8080"},
		{"docs=http://docs.corp:8080", "http://docs.corp:8080"},
		{"docs=http://127.0.0.1:8080", map[string]any{
			"upstream": "http://127.0.0.1:8080", "host": "rewrite", "allowed-ips": []string{"127.0.0.1"},
		}},
		{"docs=http://203.0.113.7:8080", map[string]any{"upstream": "http://203.0.113.7:8080", "allowed-ips": []string{"203.0.113.7"}}},
		{"docs=https://docs.corp:8443", map[string]any{"upstream": "https://docs.corp:8443", "upstream-tls": map[string]any{"system-cas": true}}},
		{"docs=exec:mcp-files /srv", map[string]any{"command": []string{"mcp-files", "/srv"}}},
	} {
		routes, err := parseRoutes([]string{tt.route})
		if err != nil {
			t.Errorf("%s: %v", tt.route, err)
			continue
		}
		if diff := cmp.Diff(tt.want, routeValue(routes["docs"])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.route, diff)
		}
	}
}
