package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// How a client proves who it is to a token endpoint.
const (
	AuthNone  = "none"
	AuthBasic = "client_secret_basic"
	AuthPost  = "client_secret_post"
)

// A Refresh is what is needed to renew an access token (RFC 6749, section 6).
type Refresh struct {
	TokenEndpoint string
	AuthMethod    string // one of the three above
	ClientID      string
	ClientSecret  string // "" with AuthNone
	RefreshToken  string
	Scope         string // "" asks for what was granted
	Resource      string // RFC 8707; "" names none
}

// A Token is what a token endpoint gave out.
type Token struct {
	AccessToken  string
	RefreshToken string    // "" leaves the one that was used
	ExpiresAt    time.Time // zero if that was not said
}

// A Response is an HTTP answer as it can be shown to a person: cut, and without the
// secrets that were sent.
type Response struct {
	Status      int
	ContentType string
	Body        string
	Truncated   bool
}

// A RefreshError says why there is no new token.
type RefreshError struct {
	Response *Response // nil if there was no answer
	Code     string    // of the endpoint, as in invalid_grant; may be ""
	Err      error     // what else there is to say, without secrets
}

func (e *RefreshError) Error() string {
	switch {
	case e.Response == nil:
		return "the token endpoint cannot be reached: " + e.Err.Error()
	case e.Code != "":
		return fmt.Sprintf("the token endpoint answered %d, %s", e.Response.Status, e.Code)
	case e.Err != nil:
		return fmt.Sprintf("the token endpoint answered %d: %v", e.Response.Status, e.Err)
	}
	return fmt.Sprintf("the token endpoint answered %d", e.Response.Status)
}

func (e *RefreshError) Unwrap() error { return e.Err }

// refusals are the codes of RFC 6749, section 5.2: whatever the status, they are the answer
// to what was asked.
var refusals = []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}

// passing are the codes by which an endpoint asks for patience.
var passing = []string{"temporarily_unavailable", "server_error", "slow_down"}

// Final reports whether the endpoint has refused what it was asked: asking again for
// the same changes nothing.
func (e *RefreshError) Final() bool {
	switch {
	case e.Response == nil, slices.Contains(passing, e.Code):
		return false
	case slices.Contains(refusals, e.Code):
		return true
	}
	switch s := e.Response.Status; {
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s >= 500:
		return false
	default:
		// Some refuse with status 200, and codes of their own.
		return s >= 400 || e.Code != ""
	}
}

// The bounds of what a token endpoint may answer, in bytes.
const (
	tokenAnswerMax = 256 << 10
	tokenMax       = 16 << 10
	bodyShown      = 2048
)

// Do asks the token endpoint for a new token through client, which says where
// connections may go. Redirects are not followed: the answer would be another's.
// Errors are [*RefreshError]s.
func (r Refresh) Do(ctx context.Context, client *http.Client) (Token, error) {
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {r.RefreshToken}}
	if r.Scope != "" {
		form.Set("scope", r.Scope)
	}
	if r.Resource != "" {
		form.Set("resource", r.Resource)
	}
	if r.AuthMethod != AuthBasic {
		form.Set("client_id", r.ClientID)
	}
	if r.AuthMethod == AuthPost {
		form.Set("client_secret", r.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.TokenEndpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return Token{}, &RefreshError{Err: errors.New("its URL cannot be used")}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if r.AuthMethod == AuthBasic {
		req.Header.Set("Authorization", "Basic "+r.basic())
	}
	asked := time.Now()
	resp, err := unredirected(client).Do(req)
	if err != nil {
		return Token{}, &RefreshError{Err: unwrapURL(err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, tokenAnswerMax))
	if err != nil {
		return Token{}, &RefreshError{Err: err}
	}
	return r.answer(resp, body, asked)
}

// answer reads what the token endpoint said.
func (r Refresh) answer(resp *http.Response, body []byte, asked time.Time) (Token, error) {
	var out struct {
		AccessToken  string          `json:"access_token"`
		RefreshToken string          `json:"refresh_token"`
		TokenType    string          `json:"token_type"`
		ExpiresIn    json.RawMessage `json:"expires_in"`
		Error        string          `json:"error"`
	}
	parseErr := json.Unmarshal(body, &out)
	if resp.StatusCode == http.StatusOK && parseErr == nil && out.Error == "" {
		switch {
		case out.AccessToken == "":
			parseErr = errors.New("no access token in it")
		case len(out.AccessToken) > tokenMax || len(out.RefreshToken) > tokenMax:
			parseErr = fmt.Errorf("a token in it has more than %d bytes", tokenMax)
		case !isHeaderToken(out.AccessToken):
			parseErr = errors.New("the access token in it has characters that a header cannot have")
		case out.TokenType != "" && !strings.EqualFold(out.TokenType, "bearer"):
			parseErr = errors.New("the access token in it is not a bearer token")
		default:
			return Token{out.AccessToken, out.RefreshToken, expiry(asked, out.ExpiresIn)}, nil
		}
	}
	e := &RefreshError{Response: shown(resp, body, r.RefreshToken, r.ClientSecret, r.basic(), out.AccessToken, out.RefreshToken), Err: parseErr}
	if isErrorCode(out.Error) {
		e.Code = out.Error
	}
	return Token{}, e
}

// basic is how the client's secret stands in the Authorization header; "" where it does not.
func (r Refresh) basic() string {
	if r.AuthMethod != AuthBasic {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(r.ClientID) + ":" + url.QueryEscape(r.ClientSecret)))
}

// expiry is when a token ends that has some seconds to live, a number or, from some
// servers, a string of one.
func expiry(asked time.Time, in json.RawMessage) time.Time {
	seconds, err := strconv.ParseFloat(strings.Trim(string(in), `"`), 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 || seconds > 10*365*24*3600 {
		return time.Time{}
	}
	return asked.Add(time.Duration(seconds) * time.Second)
}

// isHeaderToken reports whether s can stand after "Bearer " in a header.
func isHeaderToken(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func isErrorCode(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
}

// unredirected is client without the following of redirects.
func unredirected(client *http.Client) *http.Client {
	c := *client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// unwrapURL is err without the URL, in whose query somebody may have put a secret.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// secretMembers are the members of JSON whose values are never shown.
var secretMembers = regexp.MustCompile(`("(?:[a-z_]*token|client_secret|code|password|assertion)"\s*:\s*)"(?:[^"\\]|\\.)*("|$)`)

const scrubbed = "[scrubbed]"

// shown is an answer for a person to look at, without secrets.
func shown(resp *http.Response, body []byte, secrets ...string) *Response {
	text := strings.ToValidUTF8(string(body), "\uFFFD")
	text = secretMembers.ReplaceAllString(text, `$1"`+scrubbed+`"`)
	var forms []string
	for _, s := range secrets {
		if s != "" {
			forms = append(forms, spellings(s)...)
		}
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
	for _, f := range forms {
		text = strings.ReplaceAll(text, f, scrubbed)
	}
	r := &Response{Status: resp.StatusCode, Body: text}
	if mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		r.ContentType = mediaType
	}
	if len(r.Body) > bodyShown {
		cut := bodyShown
		for !utf8.RuneStart(r.Body[cut]) {
			cut--
		}
		r.Body, r.Truncated = r.Body[:cut], true
	}
	return r
}

// spellings are the ways in which a server may write s back: as it is, in a URL, with the
// digits of its escapes in either case, or in JSON, where some escape slashes.
func spellings(s string) []string {
	inURL, inJSON := url.QueryEscape(s), jsonText(s)
	return []string{
		s, inURL, urlEscape.ReplaceAllStringFunc(inURL, strings.ToLower),
		inJSON, strings.ReplaceAll(inJSON, "/", `\/`),
	}
}

var urlEscape = regexp.MustCompile(`%..`)

// jsonText is s as it stands between the quotes of a JSON string.
func jsonText(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return s
	}
	return strings.Trim(string(b), `"`)
}
