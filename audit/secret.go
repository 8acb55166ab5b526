package audit

import (
	"encoding/hex"
	"regexp"
	"strings"
)

// A masker replaces credentials. What it puts in their place is a keyed digest,
// so that the key's owner can find where the same credential turned up, and
// nobody else can guess at it.
type masker struct{ key Key }

// maskable are the shapes of credentials. The last group of each is what is
// replaced, or the whole match if there is none. This is the last guard before
// the file, not a licence to record secrets.
var maskable = []struct {
	hint  []string // at least one of these occurs in every match, in any case
	shape *regexp.Regexp
}{
	{[]string{"sk-", "sk_"}, regexp.MustCompile(`\bsk[-_](?:[A-Za-z0-9]+[-_]){0,3}[A-Za-z0-9_-]{12,}`)},
	{[]string{"gh", "github_pat_", "glpat-"}, regexp.MustCompile(`\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,})`)},
	{[]string{"xox", "npm_", "hf_"}, regexp.MustCompile(`\b(?:xox[a-z]-[A-Za-z0-9-]{10,}|npm_[A-Za-z0-9]{24,}|hf_[A-Za-z0-9]{24,})`)},
	{[]string{"akia", "asia", "aiza"}, regexp.MustCompile(`\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,})`)},
	{[]string{"eyj"}, regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?`)},
	{[]string{"private key"}, regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)`)},
	{[]string{"://"}, regexp.MustCompile(`://[^/\s:@"]*:([^@/\s"]+)@`)},
	{[]string{"bearer", "basic"}, regexp.MustCompile(`(?i)\b(?:bearer|basic) +([A-Za-z0-9._~+/=-]{8,})`)},
	{secretNames, regexp.MustCompile(`(?i)(?:` + strings.Join(secretNames, "|") + `)\\?["']?\s*[:=]\s*\\?["']?([^\s"'\\,;&}\])]{4,})`)},
}

// secretNames end the names of variables, fields and parameters that hold one.
var secretNames = []string{
	"password", "passwd", "passphrase", "secret", "token", "api_key", "api-key", "apikey", "access_key", "secret_key",
	"private_key", "credentials",
}

// text returns s without what looks like a credential.
func (m masker) text(s string) string {
	if len(s) < 8 { // no credential is that short
		return s
	}
	lower := strings.ToLower(s)
	for _, p := range maskable {
		if !containsAny(lower, p.hint) {
			continue
		}
		s = replaceLastGroup(p.shape, s, m.mask)
	}
	return s
}

// named returns the value of a field called name.
func (m masker) named(name, value string) string {
	for _, n := range secretNames {
		if strings.HasSuffix(name, n) && value != "" {
			return m.mask(value)
		}
	}
	return m.text(value)
}

// mask is what stands for a secret.
func (m masker) mask(secret string) string {
	if strings.HasPrefix(secret, maskPrefix) {
		return secret // masked already
	}
	return maskPrefix + hex.EncodeToString(m.key.mac("value", []byte(secret))[:8]) + "]"
}

const maskPrefix = "[masked:"

func containsAny(s string, any []string) bool {
	for _, sub := range any {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}

func replaceLastGroup(re *regexp.Regexp, s string, with func(string) string) string {
	matches := re.FindAllStringSubmatchIndex(s, -1)
	if matches == nil {
		return s
	}
	var b strings.Builder
	at := 0
	for _, m := range matches {
		from, to := m[len(m)-2], m[len(m)-1]
		b.WriteString(s[at:from])
		b.WriteString(with(s[from:to]))
		at = to
	}
	b.WriteString(s[at:])
	return b.String()
}
