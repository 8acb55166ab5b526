package gateway

import (
	"context"
	"errors"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailey-platform/bailey/jwks"
)

// A remoteKeys is what an issuer publishes as a key set of go-oidc, whose own asks the issuer
// for each token that names a key it does not know.
type remoteKeys struct{ *jwks.Set }

// VerifySignature implements [oidc.KeySet]. Its error has the text of jwks.ErrUnavailable
// where the issuer is to blame: what is around it drops the error.
func (k remoteKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSignedCompact(token, joseAlgorithms)
	if err != nil || len(signed.Signatures) != 1 {
		return nil, errors.New("the token is not signed as it should be")
	}
	keys, err := k.Named(ctx, signed.Signatures[0].Header.KeyID)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if payload, err := signed.Verify(&keys[i]); err == nil {
			return payload, nil
		}
	}
	return nil, jwks.ErrUnknown
}
