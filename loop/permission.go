package loop

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// evaluate returns what a policy makes of a call of a built-in tool.
func evaluate(policy, name string, input json.RawMessage) (api.Permission, *api.Evaluation) {
	switch policy {
	case api.AlwaysAllow:
		return api.PermissionAllow, &api.Evaluation{Type: policy}
	case api.Auto:
		v := judge(name, input)
		return v.Type, &api.Evaluation{Type: policy, Verdict: &v}
	}
	// always_ask, and anything this version has not heard of.
	return api.PermissionAsk, &api.Evaluation{Type: api.AlwaysAsk}
}

// ambiguous reports whether an input names a field twice, or in another case than
// every reader would take for the same: readers disagree on which of them counts.
func ambiguous(input json.RawMessage) bool {
	dec := json.NewDecoder(bytes.NewReader(input))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return false // not an object; the tool refuses it
	}
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return true
		}
		name := strings.ToLower(key.(string))
		if seen[name] {
			return true
		}
		seen[name] = true
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return true
		}
	}
	return false
}

// The verdicts of the auto policy.
var (
	verdictAllow = api.Verdict{Type: api.PermissionAllow}
	verdictAsk   = api.Verdict{Type: api.PermissionAsk, ReasonCode: "indeterminate"}
	verdictDeny  = api.Verdict{Type: api.PermissionDeny, ReasonCode: "high_risk"}
)

// judge is the auto policy: fixed rules on the call alone, so that the same call
// always gets the same answer. It allows what only looks, or only touches the
// session's own files; it denies what nobody means to run in a session; it leaves
// the rest to a person. The walls are the sandbox's business, not these rules'.
func judge(name string, input json.RawMessage) api.Verdict {
	var in struct {
		Command  string `json:"command"`
		FilePath string `json:"file_path"`
		Path     string `json:"path"`
		Pattern  string `json:"pattern"`
	}
	if json.Unmarshal(input, &in) != nil {
		return verdictAsk
	}
	switch name {
	case "read", "glob", "grep":
		if holdsSecret(in.FilePath) || holdsSecret(in.Path) || name == "glob" && holdsSecret(in.Pattern) {
			return verdictDeny
		}
		return verdictAllow
	case "write", "edit":
		switch {
		case holdsSecret(in.FilePath):
			return verdictDeny
		case inWorkspace(in.FilePath):
			return verdictAllow
		}
	case "bash":
		script, plain := parseShell(in.Command, 0)
		switch {
		case isForkBomb(in.Command) || highRisk(script, 0):
			return verdictDeny
		case plain && harmless(script):
			return verdictAllow
		}
	}
	return verdictAsk
}

// workspace is where a session's files are in our own boxes.
const workspace = "/workspace"

// inWorkspace reports whether a path stays within the session's files.
func inWorkspace(p string) bool {
	if p == "" || strings.HasPrefix(p, "~") {
		return false
	}
	if rest, ok := strings.CutPrefix(p, workspace); ok && (rest == "" || rest[0] == '/') {
		p = "." + rest
	}
	clean := path.Clean(p)
	return !path.IsAbs(clean) && clean != ".." && !strings.HasPrefix(clean, "../")
}

// secrets are parts of paths, and of addresses, behind which credentials are.
var secrets = []string{
	".ssh/", "id_rsa", "id_ed25519", "id_ecdsa", "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/environ",
	".aws/credentials", ".config/gcloud", ".azure/", ".kube/config", ".docker/config.json",
	".netrc", ".pgpass", ".git-credentials", ".gnupg", "credentials.json",
	"169.254.169.254", "metadata.google.internal",
}

// holdsSecret reports whether a word of a command, or a path, names a well-known
// place of credentials.
func holdsSecret(word string) bool {
	for _, s := range secrets {
		if strings.Contains(word, s) {
			return true
		}
	}
	return path.Base(word) == ".ssh" || path.Base(word) == "credentials"
}
