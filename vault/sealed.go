package vault

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
)

// An Owner is whose a secret is: the id of the object, and the name of the field. A
// sealed value opens for the same owner only.
type Owner struct {
	ID    string // of the object, such as vcrd_…
	Field string // such as access_token
}

// bytes is what binds a sealed value to its owner, different for different owners.
func (o Owner) bytes() []byte {
	b := []byte("bailey sealed 1")
	for _, part := range []string{o.ID, o.Field} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// A Sealed is a secret as it is stored. It is of no use without the key that it names,
// and says nothing but how long the secret is.
type Sealed string

// sealedForm begins every sealed value: the version of the form.
const sealedForm = "bailey1"

// parts of a sealed value, which are joined by "$".
type parts struct {
	keyID   string
	wrapped []byte // the data key, as the key-encryption key wrapped it
	text    []byte // nonce and ciphertext
}

// The bounds of what is read as a sealed value, in bytes.
const (
	keyIDMax   = 512
	wrappedMax = 8 << 10
)

var errNotSealed = errors.New("vault: not a sealed value")

func (p parts) sealed() Sealed {
	enc := base64.RawURLEncoding.EncodeToString
	return Sealed(strings.Join([]string{sealedForm, p.keyID, enc(p.wrapped), enc(p.text)}, "$"))
}

func (s Sealed) parts() (p parts, err error) {
	all := strings.Split(string(s), "$")
	if len(all) != 4 || all[0] != sealedForm || !isKeyID(all[1]) || len(all[2]) > wrappedMax {
		return p, errNotSealed
	}
	p.keyID = all[1]
	if p.wrapped, err = base64.RawURLEncoding.Strict().DecodeString(all[2]); err != nil {
		return p, errNotSealed
	}
	if p.text, err = base64.RawURLEncoding.Strict().DecodeString(all[3]); err != nil {
		return p, errNotSealed
	}
	return p, nil
}

// KeyID is the id of the key that s is wrapped by, or "" if s is not a sealed value.
func (s Sealed) KeyID() string {
	p, err := s.parts()
	if err != nil {
		return ""
	}
	return p.keyID
}

// isKeyID reports whether id can stand in a sealed value.
func isKeyID(id string) bool {
	return id != "" && len(id) <= keyIDMax && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' || r == '$' })
}
