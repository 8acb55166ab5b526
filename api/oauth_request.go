package api

// An OAuthRequest is the body of POST /v1/vaults/{id}/credentials/oauth_request: one request
// of a person's authorization (RFC 9728, 8414, 7591, 6749), to a host behind a tunnel, which
// the server reaches and the person's own machine does not. What else could be asked of such
// a host is not taken.
type OAuthRequest struct {
	Method        string `json:"method"` // GET or POST
	URL           string `json:"url"`
	ContentType   string `json:"content_type,omitempty"`
	Authorization Secret `json:"authorization,omitempty"` // of the client, at the token endpoint
	Body          Secret `json:"request_body,omitempty"`
}

// The fields of an OAuthRequest that hold secrets.
const (
	FieldAuthorization = "authorization"
	FieldRequestBody   = "request_body"
)

// CodeNotBehindTunnel is the error_code of a request to a host that is behind no tunnel.
const CodeNotBehindTunnel = "not_behind_tunnel"

// OAuthBodyMax bounds the body of an OAuthRequest, and of its answer, in bytes.
const OAuthBodyMax = 256 << 10

// An OAuthAnswer is what the host answered.
type OAuthAnswer struct {
	Status      int    `json:"status"`
	ContentType string `json:"content_type,omitempty"`
	Challenge   string `json:"www_authenticate,omitempty"`
	Body        string `json:"body,omitempty"`
}
