package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const noPackages = `"packages":{"type":"packages","apt":[],"cargo":[],"gem":[],"go":[],"npm":[],"pip":[]}`

// What a client sends and what it gets back, to the byte.
func TestEnvironmentConfig(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"type":"self_hosted"}`: `{"type":"self_hosted"}`,
		`{"type":"cloud"}`:       `{"type":"cloud","networking":{"type":"unrestricted"},` + noPackages + `}`,
		`{"type":"cloud","networking":null,"packages":null}`: `{"type":"cloud","networking":{"type":"unrestricted"},` + noPackages + `}`,
		`{"type":"cloud","networking":{"type":"limited"}}`:   `{"type":"cloud","networking":{"type":"limited","allow_mcp_servers":false,"allow_package_managers":false,"allowed_hosts":[]},` + noPackages + `}`,
		`{"type":"cloud","networking":{"type":"limited","allowed_hosts":["api.example.com","*.Example.org","xn--bcher-kva.example"],"allow_mcp_servers":true,"allow_package_managers":null}}`: `{"type":"cloud","networking":{"type":"limited","allow_mcp_servers":true,"allow_package_managers":false,"allowed_hosts":["api.example.com","*.Example.org","xn--bcher-kva.example"]},` + noPackages + `}`,
		`{"type":"cloud","packages":{"pip":["numpy==2.1.0","x[extra]>=1"],"npm":["@scope/pkg@1"],"apt":null}}`:                                                                                `{"type":"cloud","networking":{"type":"unrestricted"},"packages":{"type":"packages","apt":[],"cargo":[],"gem":[],"go":[],"npm":["@scope/pkg@1"],"pip":["numpy==2.1.0","x[extra]\u003e=1"]}}`,
	} {
		got, err := resolved(in)
		if err != nil || got != want {
			t.Errorf("%s\n got %s, %v\nwant %s", in, got, err, want)
		}
	}
	limited := func(fields string) string { return `{"type":"cloud","networking":{"type":"limited",` + fields + `}}` }
	many, _ := json.Marshal(make([]string, AllowedHostsMax+1))
	for in, want := range map[string]string{
		`{}`:              "config.type",
		`{"type":"mars"}`: "config.type",
		`{"type":"self_hosted","networking":{"type":"unrestricted"}}`:                         "takes no networking",
		`{"type":"cloud","networking":{}}`:                                                    "config.networking.type",
		`{"type":"cloud","networking":{"type":"open"}}`:                                       "config.networking.type",
		`{"type":"cloud","networking":{"type":"unrestricted","allowed_hosts":["a.example"]}}`: "extra inputs",
		limited(`"hosts":[]`):                                                       "extra inputs",
		limited(`"allowed_hosts":"a.example"`):                                      "wrong type",
		limited(`"allowed_hosts":["ok.example","https://a.example"]`):               "config.networking.allowed_hosts.1: \"https://a.example\" is not a bare host name",
		limited(`"allowed_hosts":["a.example:443"]`):                                "leave out the scheme, the port",
		limited(`"allowed_hosts":["a.example/x"]`):                                  "and the path",
		limited(`"allowed_hosts":["user@a.example"]`):                               "not a bare host name",
		limited(`"allowed_hosts":["*"]`):                                            "a wildcard is only",
		limited(`"allowed_hosts":["*.*.example"]`):                                  "a wildcard is only",
		limited(`"allowed_hosts":["a*.example"]`):                                   "a wildcard is only",
		limited(`"allowed_hosts":["*."]`):                                           "not a host name",
		limited(`"allowed_hosts":[""]`):                                             "must not be empty",
		limited(`"allowed_hosts":["a..example"]`):                                   "not a host name",
		limited(`"allowed_hosts":["a.example."]`):                                   "not a host name",
		limited(`"allowed_hosts":["-a.example"]`):                                   "not a host name",
		limited(`"allowed_hosts":["a b.example"]`):                                  "not a host name",
		limited(`"allowed_hosts":["bücher.example"]`):                               "not a host name",
		limited(`"allowed_hosts":["a\u0000.example"]`):                              "not a host name",
		limited(`"allowed_hosts":["169.254.169.254"]`):                              "is an address",
		limited(`"allowed_hosts":["2852039166"]`):                                   "is an address",
		limited(`"allowed_hosts":["0xa9.0xfe.0xa9.0xFE"]`):                          "is an address",
		limited(`"allowed_hosts":["[::1]"]`):                                        "not a bare host name",
		limited(`"allowed_hosts":["` + strings.Repeat("a.", 127) + `example"]`):     "at most 253",
		limited(`"allowed_hosts":` + string(many)):                                  "at most 500",
		`{"type":"cloud","packages":{"brew":["x"]}}`:                                "extra inputs",
		`{"type":"cloud","packages":{"type":"pkgs"}}`:                               "config.packages.type",
		`{"type":"cloud","packages":{"pip":["--index-url=http://evil"]}}`:           "config.packages.pip.0",
		`{"type":"cloud","packages":{"apt":["a b"]}}`:                               "one word",
		`{"type":"cloud","packages":{"apt":[""]}}`:                                  "1 to 256",
		`{"type":"cloud","packages":{"go":["./x"]}}`:                                "does not begin so",
		`{"type":"cloud","networking":{"type":"limited"},"packages":{"pip":["x"]}}`: "allow_package_managers: true",
	} {
		if got, err := resolved(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.200s\n got %.200s, %v, want an error with %q", in, got, err, want)
		}
	}
}

func resolved(in string) (string, error) {
	var c EnvironmentConfig
	if err := DecodeStrict([]byte(in), &c); err != nil {
		return "", err
	}
	if err := c.Resolve(); err != nil {
		return "", err
	}
	out, err := json.Marshal(c)
	return string(out), err
}

func TestEnvironmentConfigUpdate(t *testing.T) {
	t.Parallel()
	var old EnvironmentConfig
	const before = `{"type":"cloud","networking":{"type":"limited","allowed_hosts":["a.example"],"allow_package_managers":true},"packages":{"pip":["x"],"npm":["y"]}}`
	if err := errors.Join(DecodeStrict([]byte(before), &old), old.Resolve()); err != nil {
		t.Fatal(err)
	}
	network := func(hosts string, managers bool) string {
		return fmt.Sprintf(`"networking":{"type":"limited","allow_mcp_servers":false,"allow_package_managers":%t,"allowed_hosts":%s}`, managers, hosts)
	}
	packages := func(npm, pip string) string {
		return `"packages":{"type":"packages","apt":[],"cargo":[],"gem":[],"go":[],"npm":` + npm + `,"pip":` + pip + `}`
	}
	for _, tc := range []struct{ in, want string }{
		{`{}`, network(`["a.example"]`, true) + "," + packages(`["y"]`, `["x"]`)},
		{`{"type":"cloud"}`, network(`["a.example"]`, true) + "," + packages(`["y"]`, `["x"]`)},
		{`{"networking":{"type":"limited","allowed_hosts":["b.example"]}}`, network(`["b.example"]`, true) + "," + packages(`["y"]`, `["x"]`)},
		{`{"networking":{"type":"limited","allowed_hosts":null}}`, network(`[]`, true) + "," + packages(`["y"]`, `["x"]`)},
		{`{"networking":{"type":"unrestricted"}}`, `"networking":{"type":"unrestricted"},` + packages(`["y"]`, `["x"]`)},
		{`{"networking":null}`, `"networking":{"type":"unrestricted"},` + packages(`["y"]`, `["x"]`)},
		{`{"packages":{"pip":null}}`, network(`["a.example"]`, true) + "," + packages(`["y"]`, `[]`)},
		{`{"packages":null,"networking":{"type":"limited","allow_package_managers":false}}`, network(`["a.example"]`, false) + "," + packages(`[]`, `[]`)},
		{`{"networking":{"type":"limited","allow_package_managers":false}}`, ""},
		{`{"type":"self_hosted"}`, ""},
	} {
		var u EnvironmentConfigUpdate
		if err := DecodeStrict([]byte(tc.in), &u); err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		next, err := u.Apply(old)
		if err == nil {
			err = next.Resolve()
		}
		got, _ := json.Marshal(next)
		switch {
		case tc.want == "" && err == nil:
			t.Errorf("%s was accepted: %s", tc.in, got)
		case tc.want != "" && (err != nil || string(got) != `{"type":"cloud",`+tc.want+`}`):
			t.Errorf("%s\n got %s, %v\nwant %s", tc.in, got, err, tc.want)
		}
	}
	var was EnvironmentConfig
	if err := errors.Join(DecodeStrict([]byte(before), &was), was.Resolve()); err != nil || !cmp.Equal(was, old) {
		t.Errorf("an update changed what it was applied to: %+v", old)
	}
}

func FuzzAllowedHost(f *testing.F) {
	f.Add("*.example.com")
	f.Add("169.254.169.254")
	f.Fuzz(func(t *testing.T, entry string) {
		if CheckAllowedHost(entry) == nil && strings.Trim(strings.TrimPrefix(entry, "*."), hostLetters+".") != "" {
			t.Errorf("%q was accepted", entry)
		}
	})
}

// Names that only look alike are not those of the list.
func TestAllowsMCP(t *testing.T) {
	t.Parallel()
	n := &Networking{Type: NetworkLimited, AllowedHosts: []string{"GitHub.com", "*.example.com"}}
	for host, want := range map[string]bool{
		"github.com": true, "GITHUB.COM.": true, "a.Example.com": true,
		"g\u0130thub.com": false, "api.github.com": false, "example.com": false, ".example.com": false, "notexample.com": false,
		"x.exampl\u0435.com": false, "m\u0130.ex\u0130mple.com": false, "": false,
	} {
		if got := n.AllowsMCP(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
