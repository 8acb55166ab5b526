package httpapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// The organization and the workspace that every response names. This server has
// one of each.
const (
	organizationID = api.OrganizationDefault
	workspaceID    = string(api.WorkspaceDefault)
)

// versions are the values of anthropic-version that are understood. What they
// change is not visible in any operation served here.
var versions = []string{"2023-06-01", "2026-10-21"}

func checkVersion(h http.Header) error {
	v := h.Get("Anthropic-Version")
	if v == "" {
		return api.Invalid("anthropic-version: header is required; send %s", strings.Join(versions, " or "))
	}
	if !slices.Contains(versions, v) {
		return api.Invalid("anthropic-version: not a version of this API; send %s", strings.Join(versions, " or "))
	}
	return nil
}

// checkWorkspace refuses a request that is meant for another workspace.
func checkWorkspace(h http.Header) error {
	if v := h.Get("Anthropic-Workspace-Id"); v != "" && v != workspaceID {
		return api.Invalid("anthropic-workspace-id: this server has one workspace, %s; leave the header out", workspaceID)
	}
	return nil
}

// hasBeta reports whether anthropic-beta names want. The header may be repeated,
// and each line may be a comma-separated list. Names nobody asks about are
// ignored.
func hasBeta(h http.Header, want string) bool {
	for _, line := range h.Values("Anthropic-Beta") {
		for name := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(name) == want {
				return true
			}
		}
	}
	return false
}

// secretMax bounds a credential, in bytes.
const secretMax = 512

// A presented credential is what the headers hold, before it is looked up.
type presented struct {
	secret string
	bearer bool // in Authorization
	apiKey bool // in x-api-key
}

// credential reads the one credential of a request. Old clients send an API key
// in x-api-key and new ones in Authorization, so the header does not say what kind
// of key it is.
func credential(h http.Header) (presented, error) {
	keys, auths := h.Values("X-Api-Key"), h.Values("Authorization")
	if len(keys) > 1 || len(auths) > 1 {
		return presented{}, api.Unauthenticated("a credential header is repeated; send one credential")
	}
	var p presented
	var bearer string
	if len(auths) == 1 {
		scheme, token, _ := strings.Cut(auths[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return presented{}, api.Unauthenticated("Authorization: only the Bearer scheme is accepted")
		}
		bearer = strings.TrimSpace(token)
		p.secret, p.bearer = bearer, true
	}
	if len(keys) == 1 {
		p.secret, p.apiKey = strings.TrimSpace(keys[0]), true
	}
	switch {
	case p.bearer && p.apiKey && bearer != p.secret:
		return presented{}, api.Unauthenticated("two different credentials, in x-api-key and in Authorization; send one")
	case p.secret == "":
		return presented{}, api.Unauthenticated("a credential is required, as x-api-key: KEY or as Authorization: Bearer KEY")
	case len(p.secret) > secretMax:
		return presented{}, api.Unauthenticated("invalid credential")
	}
	return p, nil
}

// checkKind refuses a worker's credential outside Authorization, as the official
// service does.
func (p presented) checkKind(kind api.KeyKind) error {
	if p.apiKey && kind != api.KeyAPI && kind != api.KeyTunnels {
		return api.Unauthenticated("environment keys and session tokens go into Authorization: Bearer alone, without x-api-key")
	}
	return nil
}
