package tunnel

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bailey-platform/bailey/api"
)

// The rules of the inner TLS: which CA can be registered on a tunnel, and which
// certificate a gateway may answer with. They are stricter than those of the web, and
// simpler: a leaf is signed by a registered CA itself, which its key identifiers say
// too, and there is nothing between the two.

// The bounds of RSA keys, in bits. Larger ones only cost the other side time.
const (
	rsaBitsMin = 2048
	rsaBitsMax = 8192
)

// CheckCA reads the CA certificate that somebody wants to register and applies the
// rules for one, from the mistake that is easiest to see to the one that is hardest.
// The text of its error is for whoever sent the certificate and says what is wrong
// with it.
func CheckCA(text []byte, now time.Time) (*x509.Certificate, error) {
	if len(text) > api.CACertPEMMax {
		return nil, fmt.Errorf("is larger than %d bytes; send one certificate, without a bundle or comments", api.CACertPEMMax)
	}
	if bytes.Contains(text, []byte("PRIVATE KEY")) {
		return nil, errors.New("holds a private key, which must never leave the machine it was made on: replace that key, and send the certificate alone")
	}
	der, err := onePEM(text)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("is not a certificate that can be read: %s", strings.TrimPrefix(err.Error(), "x509: "))
	}
	if err := checkValidity(ca, now); err != nil {
		return nil, err
	}
	switch {
	case !ca.BasicConstraintsValid || !ca.IsCA:
		return nil, errors.New("is not the certificate of a CA: its basic constraints do not say CA:TRUE; register the CA that signs the gateway's certificate, not that certificate")
	case !critical(ca, oidBasicConstraints):
		return nil, errors.New("has basic constraints that are not marked critical (openssl: basicConstraints=critical,CA:TRUE)")
	case ca.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("may not sign certificates: its key usage has no keyCertSign (openssl: keyUsage=critical,keyCertSign)")
	case !servesTLS(ca) && hasExtKeyUsage(ca):
		return nil, errors.New("may not vouch for servers: it has an extended key usage, without serverAuth; leave the extension out or add serverAuth")
	case len(ca.SubjectKeyId) == 0:
		return nil, errors.New("has no subject key identifier (openssl: subjectKeyIdentifier=hash)")
	}
	if err := checkKey(ca); err != nil {
		return nil, err
	}
	if err := checkSignature(ca); err != nil {
		return nil, err
	}
	if len(ca.UnhandledCriticalExtensions) > 0 {
		return nil, fmt.Errorf("has a critical extension that is not understood: %s", ca.UnhandledCriticalExtensions[0])
	}
	return ca, nil
}

const pemCertificate = "CERTIFICATE"

// onePEM returns the DER of the one certificate that text consists of.
func onePEM(text []byte) ([]byte, error) {
	text = bytes.TrimSpace(text)
	if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return nil, errors.New("is not a certificate in PEM: it has to begin with -----BEGIN CERTIFICATE-----")
	}
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("is not a certificate in PEM: the block between BEGIN and END cannot be read")
	case block.Type != pemCertificate:
		return nil, fmt.Errorf("is not a certificate but a PEM block of another type; it has to begin with -----BEGIN %s-----", pemCertificate)
	case bytes.Contains(rest, []byte("-----BEGIN ")):
		return nil, errors.New("holds more than one PEM block; send exactly one certificate, without the chain")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("goes on after the certificate; send exactly one certificate and nothing else")
	case bytes.Count(text, []byte("-----BEGIN ")) != 1:
		// The decoder skips what it cannot read and takes the next block.
		return nil, errors.New("is not a certificate in PEM: the first block cannot be read")
	case len(block.Headers) > 0:
		return nil, errors.New("has header lines in its PEM block; send the certificate without them")
	}
	return block.Bytes, nil
}

// VerifyLeaf decides whether the certificate chain of an inner TLS handshake proves
// that its sender may answer for host. live are the CAs registered on the tunnel and
// not archived. It returns the one of them that has signed the leaf, so that what was
// built on it can be cut when it is archived.
//
// The chain is the leaf, which may be followed by live CAs, as some servers send them;
// an intermediate is refused, although a verifier of the web would accept it. The
// text of the error is for the tunnel's owner.
func VerifyLeaf(chain, live []*x509.Certificate, host string, now time.Time) (ca *x509.Certificate, err error) {
	if len(chain) == 0 {
		return nil, errors.New("the gateway sent no certificate")
	}
	if len(live) == 0 {
		return nil, errors.New("the tunnel has no CA certificate")
	}
	leaf := chain[0]
	for _, c := range chain[1:] {
		if !slices.ContainsFunc(live, c.Equal) {
			return nil, fmt.Errorf("the gateway sent a chain with %q in it, which is not registered: its certificate has to be signed by a registered CA itself, without intermediates", subject(c))
		}
	}
	if err := checkLeaf(leaf, host, now); err != nil {
		return nil, fmt.Errorf("the gateway's certificate %w", err)
	}
	issuers, err := issuersOf(leaf, live)
	if err != nil {
		return nil, fmt.Errorf("the gateway's certificate %w", err)
	}
	for _, ca = range issuers {
		if err = signedBy(leaf, ca, host, now); err == nil {
			return ca, nil
		}
	}
	return nil, err
}

// signedBy reports whether a leaf that names a CA was issued by it, for host.
func signedBy(leaf, ca *x509.Certificate, host string, now time.Time) error {
	if err := checkValidity(ca, now); err != nil {
		return fmt.Errorf("the registered CA %q %w", subject(ca), err)
	}
	if err := ca.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		return fmt.Errorf("the gateway's certificate names the registered CA %q as its issuer but was not signed with that CA's key", subject(ca))
	}
	// The rules of this file are the strict ones. Whatever else a certificate can say,
	// such as a CA's constraints on names, the standard verifier knows.
	only := x509.NewCertPool()
	only.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: only, Intermediates: x509.NewCertPool(), DNSName: host, CurrentTime: now})
	if err != nil {
		return fmt.Errorf("the gateway's certificate is refused: %s", shorten(strings.TrimPrefix(err.Error(), "x509: ")))
	}
	return nil
}

// checkLeaf applies the rules that need no CA.
func checkLeaf(leaf *x509.Certificate, host string, now time.Time) error {
	if err := checkValidity(leaf, now); err != nil {
		return err
	}
	switch {
	case leaf.IsCA:
		return errors.New("is that of a CA; a gateway answers with one that the CA has signed")
	case len(leaf.DNSNames) == 0:
		return errors.New("has no DNS name among its subject alternative names; the common name does not count")
	case leaf.VerifyHostname(host) != nil:
		return fmt.Errorf("is for %s, not for %s (a * stands for one label)", shown(leaf.DNSNames), host)
	case !servesTLS(leaf) && hasExtKeyUsage(leaf):
		return errors.New("may not be used by servers: its extended key usage has no serverAuth")
	case len(leaf.AuthorityKeyId) == 0:
		return errors.New("has no authority key identifier (openssl: authorityKeyIdentifier=keyid)")
	}
	if err := checkKey(leaf); err != nil {
		return err
	}
	return checkSignature(leaf)
}

// issuersOf finds the live CAs that a leaf names as its own, by subject and by key.
// There are two when a CA's certificate was renewed and its key kept.
func issuersOf(leaf *x509.Certificate, live []*x509.Certificate) (cas []*x509.Certificate, err error) {
	named := false
	for _, ca := range live {
		if !bytes.Equal(leaf.RawIssuer, ca.RawSubject) {
			continue
		}
		named = true
		if bytes.Equal(leaf.AuthorityKeyId, ca.SubjectKeyId) {
			cas = append(cas, ca)
		}
	}
	switch {
	case len(cas) > 0:
		return cas, nil
	case named:
		return nil, errors.New("has an authority key identifier that is not the subject key identifier of the registered CA: another CA of the same name has signed it")
	}
	return nil, fmt.Errorf("was issued by %q, which is not a registered CA of this tunnel, or not any more", shorten(leaf.Issuer.String()))
}

func checkValidity(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("has expired, on %s", c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("is not valid before %s; it is %s now", c.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkKey applies the floor of keys: RSA of 2048 bits, or ECDSA on P-256.
func checkKey(c *x509.Certificate) error {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < rsaBitsMin || bits > rsaBitsMax {
			return fmt.Errorf("has an RSA key of %d bits; %d to %d are accepted", bits, rsaBitsMin, rsaBitsMax)
		}
		return nil
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < 256 {
			return fmt.Errorf("has an ECDSA key on %s; P-256, P-384 and P-521 are accepted", key.Curve.Params().Name)
		}
		return nil
	}
	kind := c.PublicKeyAlgorithm.String()
	if c.PublicKeyAlgorithm == x509.UnknownPublicKeyAlgorithm {
		kind = "an unknown kind"
	}
	return fmt.Errorf("has a key of %s; RSA of at least %d bits and ECDSA on at least P-256 are accepted", kind, rsaBitsMin)
}

// signatures are the algorithms a certificate may be signed with: SHA-256 or stronger.
var signatures = []x509.SignatureAlgorithm{
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
}

func checkSignature(c *x509.Certificate) error {
	if !slices.Contains(signatures, c.SignatureAlgorithm) {
		return fmt.Errorf("is signed with %s; RSA or ECDSA with SHA-256 or stronger is accepted", c.SignatureAlgorithm)
	}
	return nil
}

// servesTLS reports whether the extended key usages allow a TLS server.
func servesTLS(c *x509.Certificate) bool {
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func hasExtKeyUsage(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0
}

var oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}

func critical(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Critical
		}
	}
	return false
}

// Fingerprint is the lower-case hex SHA-256 of a certificate's DER.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

func subject(c *x509.Certificate) string { return shorten(c.Subject.String()) }

// shown lists a few of a certificate's names.
func shown(names []string) string {
	const few = 3
	if len(names) > few {
		return shorten(strings.Join(names[:few], ", ")) + fmt.Sprintf(" and %d more", len(names)-few)
	}
	return shorten(strings.Join(names, ", "))
}

// shorten bounds text that comes out of a certificate.
func shorten(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
