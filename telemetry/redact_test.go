package telemetry

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestRedact(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"api key", `key sk-ant-api03-AbC_d-1 end`, `key sk-ant-[redacted] end`},
		{"environment key in json", `{"k":"sk-ant-oat01-xyz","n":1}`, `{"k":"sk-ant-[redacted]","n":1}`},
		{"two of them", `sk-ant-req-a,sk-ant-req-b`, `sk-ant-[redacted],sk-ant-[redacted]`},
		{"database password", `open postgres://bailey:hunter2@db:5432/x: refused`, `open postgres://bailey:[redacted]@db:5432/x: refused`},
		{"bearer", `Authorization: Bearer eyJhbGciOi.abc-def`, `Authorization: Bearer [redacted]`},
		{"attribute", `msg=x password=hunter2 user=me`, `msg=x password=[redacted] user=me`},
		{"quoted attribute", `api_key="a b"`, `api_key="[redacted]"`},
		{"json field", `{"client_secret":"abc","a":"b"}`, `{"client_secret":"[redacted]","a":"b"}`},
		{"query parameter", `GET /x?access_token=abc&n=1`, `GET /x?access_token=[redacted]&n=1`},
		{"a password with a quote, in a JSON log", `{"error":"password=ab\"cd"}`, `{"error":"password=[redacted]\"cd"}`},
		{"a quoted password, in a JSON log", `{"error":"api_key=\"a b\" x"}`, `{"error":"api_key=\"[redacted]\" x"}`},
		{"a value that ends in a backslash", `{"password":"ab\\","n":1}`, `{"password":"[redacted]","n":1}`},
		{"a value with an escaped quote", `{"password":"ab\"cd","n":1}`, `{"password":"[redacted]","n":1}`},
		{"JSON in JSON", `{"body":"{\"secret\":\"abc\",\"n\":1}"}`, `{"body":"{\"secret\":\"[redacted]\",\"n\":1}"}`},
		{"a password with a backslash", `password=ab\cd x`, `password=[redacted] x`},
		{"a URL in JSON", `{"u":"db://u:a\\b@h"}`, `{"u":"db://u:[redacted]@h"}`},
		{"prose is left alone", `read secret: permission denied; the password is wrong`, `read secret: permission denied; the password is wrong`},
		{"a URL without a password", `http://user@host:80/p and http://host:80/a@b`, `http://user@host:80/p and http://host:80/a@b`},
		{"a token type", `bearer token missing`, `bearer token missing`},
		{"nothing", ``, ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := string(Redact([]byte(tt.in))); got != tt.want {
				t.Errorf("Redact(%s)\n got %s\nwant %s", tt.in, got, tt.want)
			}
		})
	}
}

// A backslash was taken along with a secret and left the line of a log without its
// end.
func FuzzRedactedJSONIsStillJSON(f *testing.F) {
	f.Add(`password=abc"`, `x`)
	f.Add(`open "secret=\\"`, `api_key="a\" b"`)
	f.Add(`{"client_secret": "a"}`, "postgres://u:p\"@h")
	f.Fuzz(func(t *testing.T, text, more string) {
		line, err := json.Marshal(map[string]string{"msg": text, "password": more, "n": more})
		if err != nil {
			t.Skip()
		}
		if got := redactJSON(bytes.Clone(line)); !json.Valid(got) {
			t.Errorf("%s\nbecame\n%s", line, got)
		}
	})
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte(`x sk-ant-api03-abc`))
	f.Add([]byte(`postgres://a:b@c password="x`))
	f.Fuzz(func(t *testing.T, in []byte) {
		once := Redact(bytes.Clone(in))
		if twice := Redact(bytes.Clone(once)); !bytes.Equal(once, twice) {
			t.Errorf("redacting again changes the text:\n%q\n%q", once, twice)
		}
	})
}
