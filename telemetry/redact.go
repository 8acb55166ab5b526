package telemetry

import (
	"io"
	"regexp"
)

// secrets are the shapes of credentials that must not reach a log, with what is
// written instead. They are looked for in finished records, where a backslash begins
// an escape: no shape may end between it and what it escapes, or the record would no
// longer be JSON.
var secrets = []shape{
	// Every kind of key of Bailey's and Anthropic's begins so.
	{regexp.MustCompile(`sk-ant-[A-Za-z0-9_.-]+`), "sk-ant-[redacted]"},
	// The password of a URL, such as a database's.
	{regexp.MustCompile(`(://[^/\s:@"\\]*:)(?:[^@/\s"\\]|\\[^"])+@`), "${1}[redacted]@"},
	// An Authorization header, whoever's token it holds.
	{regexp.MustCompile(`(?i)(\bbearer )[A-Za-z0-9_.~+/=-]{8,}`), "${1}[redacted]"},
	// JSON fields and attributes named after a secret; and the same in a text that is
	// quoted itself.
	{regexp.MustCompile(`(?is)("` + secretNames + `": ?")(?:[^"\\]|\\.)+`), "${1}[redacted]"},
	{regexp.MustCompile(`(?is)(\\"` + secretNames + `\\": ?\\"|\b` + secretNames + `=\\")(?:[^"\\]|\\[^"])+`), "${1}[redacted]"},
	// And bare ones, such as query parameters.
	{regexp.MustCompile(`(?i)(\b` + secretNames + `=)(?:[^"\s&\[\\]|\\[^"])+`), "${1}[redacted]"},
}

// quoted is an attribute of a text log. In a JSON log the quote would be the end of a
// string, and what follows no secret.
var quoted = shape{regexp.MustCompile(`(?is)(\b` + secretNames + `=")(?:[^"\\]|\\.)+`), "${1}[redacted]"}

// A shape is what some kind of credential looks like.
type shape struct {
	looks *regexp.Regexp
	with  string
}

func (s shape) replace(text []byte) []byte { return s.looks.ReplaceAll(text, []byte(s.with)) }

const secretNames = `(?:x-api-key|api[_-]?key|password|secret|access_token|refresh_token|client_secret)`

// Redact replaces what looks like a credential in text. It is the last guard
// before a log or a terminal, not a licence to log secrets.
func Redact(text []byte) []byte { return redactJSON(quoted.replace(text)) }

// redactJSON is [Redact] for JSON, which stays JSON.
func redactJSON(line []byte) []byte {
	for _, s := range secrets {
		line = s.replace(line)
	}
	return line
}

// redacting redacts every write. A log handler writes a record at a time, so no
// credential is split between two writes.
type redacting struct {
	w      io.Writer
	redact func([]byte) []byte
}

func (r redacting) Write(p []byte) (int, error) {
	if _, err := r.w.Write(r.redact(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
