package telemetry

import (
	"io"
	"regexp"
)

// secrets are the shapes of credentials that must not reach a log, with what is
// written instead.
var secrets = []struct {
	shape *regexp.Regexp
	with  string
}{
	// Every kind of key of Bailey's and Anthropic's begins so.
	{regexp.MustCompile(`sk-ant-[A-Za-z0-9_.-]+`), "sk-ant-[redacted]"},
	// The password of a URL, such as a database's.
	{regexp.MustCompile(`(://[^/\s:@"\\]*:)[^@/\s"\\]+@`), "${1}[redacted]@"},
	// An Authorization header, whoever's token it holds.
	{regexp.MustCompile(`(?i)(\bbearer )[A-Za-z0-9_.~+/=-]{8,}`), "${1}[redacted]"},
	// Attributes, JSON fields and query parameters named after a secret.
	{regexp.MustCompile(`(?i)("` + secretNames + `": ?"|\b` + secretNames + `=")[^"]+`), "${1}[redacted]"},
	{regexp.MustCompile(`(?i)(\b` + secretNames + `=)[^"\s&\[]+`), "${1}[redacted]"},
}

const secretNames = `(?:x-api-key|api[_-]?key|password|secret|access_token|refresh_token|client_secret)`

// Redact replaces what looks like a credential in text. It is the last guard
// before a log or a terminal, not a licence to log secrets.
func Redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.shape.ReplaceAll(text, []byte(s.with))
	}
	return text
}

// redacting applies [Redact] to every write. A log handler writes a record at a
// time, so no credential is split between two writes.
type redacting struct{ w io.Writer }

func (r redacting) Write(p []byte) (int, error) {
	if _, err := r.w.Write(Redact(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
