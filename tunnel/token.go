package tunnel

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/bailey-platform/bailey/api"
)

// A Token lets a connector attach to a tunnel, and nothing else: whoever has only the
// token can keep calls from arriving, but neither read nor answer them, which takes a
// key that a registered CA has certified.
//
// Its text has the form that connectors in use know: the base64 of a JSON object with
// an account (a), a secret (s) and the tunnel's UUID (t). Account and UUID inform; what
// proves anything is that the text as a whole is one that the plane has given out, so
// two texts are never the same token. The zero value is no token.
//
// A Token shows itself nowhere by accident: [Token.Text] is the only way to its text.
type Token struct{ text string }

// The sizes of what is in a token, and of its text.
const (
	tokenSecretLen = 32  // bytes, of those made here
	tokenSecretMin = 16  // bytes, of any
	tokenTextMax   = 512 // bytes
)

// tokenBody is the JSON in a token. The order of its fields is part of the form.
type tokenBody struct {
	Account string `json:"a"`
	Secret  []byte `json:"s"`
	Tunnel  string `json:"t"`
}

// NewToken makes a token of a tunnel.
func NewToken(account string, id api.TunnelID) Token {
	secret := make([]byte, tokenSecretLen)
	_, _ = rand.Read(secret) // never fails
	return Token{encodeToken(tokenBody{account, secret, tokenUUID(id)})}
}

func encodeToken(b tokenBody) string {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(b); err != nil {
		panic("tunnel: a token always encodes: " + err.Error())
	}
	return base64.StdEncoding.EncodeToString(bytes.TrimSpace(text.Bytes()))
}

// errNotAToken never quotes what it was given: that may be another secret.
var errNotAToken = errors.New("not a tunnel token: it is one line that begins with eyJ, as `bailey tunnels reveal-token` prints it")

// ParseToken reads the text of a token, with whatever white space a file or a variable
// put around it. It says that the text has the form of a token, not that the token is
// good. Its errors do not show the text.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" || len(text) > tokenTextMax {
		return Token{}, errNotAToken
	}
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return Token{}, errNotAToken
	}
	var b tokenBody
	if err := json.Unmarshal(data, &b); err != nil {
		return Token{}, errNotAToken
	}
	if len(b.Secret) < tokenSecretMin || b.Account == "" || b.Tunnel == "" {
		return Token{}, errNotAToken
	}
	// One token has one text, down to the byte: nothing unknown in it, nothing twice,
	// no other spelling.
	if encodeToken(b) != text {
		return Token{}, errNotAToken
	}
	return Token{text}, nil
}

// Text is the token itself: to be sent, or to be kept sealed.
func (t Token) Text() string { return t.text }

// ID names this value of the token without giving it away. It is what is kept to find
// the token by: a token is looked up by its hash, so that comparing tells nothing of
// how much of a guess was right.
func (t Token) ID() api.TokenID {
	sum := sha256.Sum256([]byte(t.text))
	return api.TokenID(api.PrefixToken + hex.EncodeToString(sum[:]))
}

// IsFor reports whether the token names a tunnel as its own. Only the plane can say
// whether it is right.
func (t Token) IsFor(id api.TunnelID) bool {
	data, err := base64.StdEncoding.DecodeString(t.text)
	var b tokenBody
	return err == nil && json.Unmarshal(data, &b) == nil && b.Tunnel == tokenUUID(id)
}

// IsZero reports whether there is no token.
func (t Token) IsZero() bool { return t.text == "" }

// String shows which token it is, not the token.
func (t Token) String() string {
	if t.IsZero() {
		return "tunnel.Token{}"
	}
	return "tunnel.Token{" + string(t.ID())[:len(api.PrefixToken)+8] + "…}"
}

// GoString is String, so that %#v does not show the token either.
func (t Token) GoString() string { return t.String() }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText is String: what wants the token's text has to ask for it.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// tokenUUID is the UUID (RFC 9562, version 8) that stands for a tunnel in its tokens.
func tokenUUID(id api.TunnelID) string {
	u := sha256.Sum256([]byte("bailey tunnel " + id))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
