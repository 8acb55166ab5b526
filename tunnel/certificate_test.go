package tunnel

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// keys of every kind, made once.
var (
	p256 = sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P256()) })
	p384 = sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P384()) })
	p224 = sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P224()) })
	leaf = sync.OnceValue(func() crypto.Signer { return ecKey(elliptic.P256()) })

	rsa1024 = sync.OnceValue(func() crypto.Signer { return rsaKey(1024) })
	rsa2048 = sync.OnceValue(func() crypto.Signer { return rsaKey(2048) })

	ed = sync.OnceValue(func() crypto.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
)

func ecKey(c elliptic.Curve) crypto.Signer {
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

func rsaKey(bits int) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

// caTemplate is what a good CA certificate is made of.
func caTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "office CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func leafTemplate(names ...string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "gateway"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 90),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

// sign makes the DER of a certificate.
func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func inPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// newCA makes a self-signed CA certificate, its template changed by change.
func newCA(t testing.TB, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	tmpl := caTemplate()
	if change != nil {
		change(tmpl)
	}
	return parse(t, sign(t, tmpl, tmpl, key.Public(), key))
}

// without removes an extension that the library always makes, and signs again.
func without(t testing.TB, c *x509.Certificate, key crypto.Signer, oid asn1.ObjectIdentifier) []byte {
	t.Helper()
	return remake(t, c, key, func(exts []pkix.Extension) []pkix.Extension {
		var kept []pkix.Extension
		for _, e := range exts {
			if !e.Id.Equal(oid) {
				kept = append(kept, e)
			}
		}
		return kept
	}, nil)
}

// remake changes what crypto/x509 would not make: the extensions of a certificate, or
// the algorithm it is signed with, to SHA-1.
func remake(t testing.TB, c *x509.Certificate, key crypto.Signer, change func([]pkix.Extension) []pkix.Extension, sha1OID asn1.ObjectIdentifier) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var tbs struct {
		Raw        asn1.RawContent
		Version    int `asn1:"optional,explicit,default:0,tag:0"`
		Serial     *big.Int
		Algorithm  pkix.AlgorithmIdentifier
		Issuer     asn1.RawValue
		Validity   asn1.RawValue
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
	}
	_, err := asn1.Unmarshal(c.RawTBSCertificate, &tbs)
	must(err)
	tbs.Raw = nil
	hash := crypto.SHA256
	if change != nil {
		tbs.Extensions = change(tbs.Extensions)
	}
	if sha1OID != nil {
		tbs.Algorithm = pkix.AlgorithmIdentifier{Algorithm: sha1OID, Parameters: asn1.NullRawValue}
		hash = crypto.SHA1
	}
	body, err := asn1.Marshal(tbs)
	must(err)
	digest := crypto.SHA256.New()
	if hash == crypto.SHA1 {
		digest = sha1.New()
	}
	digest.Write(body)
	sig, err := key.Sign(rand.Reader, digest.Sum(nil), hash)
	must(err)
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: body}, tbs.Algorithm, asn1.BitString{Bytes: sig, BitLength: len(sig) * 8}})
	must(err)
	return der
}

var (
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidSHA1WithRSA    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}
)

func TestCheckCA(t *testing.T) {
	t.Parallel()
	good := newCA(t, p256(), nil)
	goodPEM := inPEM(good.Raw)
	keyDER, err := x509.MarshalPKCS8PrivateKey(p256())
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	ca := func(key crypto.Signer, change func(*x509.Certificate)) []byte {
		return inPEM(newCA(t, key, change).Raw)
	}
	uncritical := remake(t, good, p256(), func(exts []pkix.Extension) []pkix.Extension {
		for i := range exts {
			if exts[i].Id.Equal(oidBasicConstraints) {
				exts[i].Critical = false
			}
		}
		return exts
	}, nil)

	for _, tt := range []struct {
		name string
		text []byte
		want string // of the error; "" is good
	}{
		{"ECDSA P-256", goodPEM, ""},
		{"ECDSA P-384", ca(p384(), nil), ""},
		{"RSA 2048", ca(rsa2048(), nil), ""},
		{"RSA-PSS", ca(rsa2048(), func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSAPSS }), ""},
		{"white space around", []byte("\n\n" + string(goodPEM) + "\r\n \n"), ""},
		{"Windows line ends", bytes.ReplaceAll(goodPEM, []byte("\n"), []byte("\r\n")), ""},
		{"signed by somebody else", inPEM(sign(t, caTemplate(), newCA(t, p384(), nil), p256().Public(), p384())), ""},
		{"for servers only", ca(p256(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ""},
		{"last second", ca(p256(), func(c *x509.Certificate) { c.NotAfter = now }), ""},

		{"empty", nil, "is not a certificate in PEM"},
		{"DER", good.Raw, "is not a certificate in PEM"},
		{"too big", append(goodPEM, bytes.Repeat([]byte("\n"), 8<<10)...), "is larger than 8192 bytes"},
		{"key after it", append(bytes.Clone(goodPEM), keyPEM...), "holds a private key"},
		{"key alone", keyPEM, "holds a private key"},
		{"encrypted key", []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "holds a private key"},
		{"two certificates", append(bytes.Clone(goodPEM), goodPEM...), "more than one PEM block"},
		{"trailing text", append(bytes.Clone(goodPEM), "signed-off-by: me"...), "goes on after the certificate"},
		{"leading text", append([]byte("Certificate:\n  Data:\n"), goodPEM...), "has to begin with -----BEGIN CERTIFICATE-----"},
		{"broken first block", append([]byte("-----BEGIN CERTIFICATE-----\n!!!\n"), goodPEM...), "the first block cannot be read"},
		{"no end", goodPEM[:len(goodPEM)-30], "cannot be read"},
		{"request", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good.Raw}), "another type"},
		{"PEM headers", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: good.Raw}), "header lines"},
		{"trailing DER", inPEM(append(bytes.Clone(good.Raw), 0)), "trailing data"},
		{"garbage", inPEM([]byte("garbage")), "malformed certificate"},

		{"expired", ca(p256(), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), "has expired, on 2026-11-22T11:59:59Z"},
		{"not yet valid", ca(p256(), func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }), "is not valid before 2026-11-22T12:01:00Z"},
		{"leaf", ca(p256(), func(c *x509.Certificate) { c.IsCA = false }), "do not say CA:TRUE"},
		{"no basic constraints", inPEM(without(t, good, p256(), oidBasicConstraints)), "do not say CA:TRUE"},
		{"basic constraints not critical", inPEM(uncritical), "not marked critical"},
		{"no certificate signing", ca(p256(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "no keyCertSign"},
		{"no key usage", inPEM(without(t, good, p256(), oidKeyUsage)), "no keyCertSign"},
		{"for clients only", ca(p256(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "without serverAuth"},
		{"no subject key id", inPEM(without(t, good, p256(), oidSubjectKeyID)), "no subject key identifier"},
		{"RSA 1024", ca(rsa1024(), nil), "RSA key of 1024 bits"},
		{"Ed25519", ca(ed(), nil), "a key of Ed25519"},
		{"P-224", ca(p224(), nil), "ECDSA key on P-224"},
		{"SHA-1", inPEM(remake(t, newCA(t, rsa2048(), nil), rsa2048(), nil, oidSHA1WithRSA)), "is signed with SHA1-RSA"},
		{"unknown critical extension", ca(p256(), func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), "critical extension that is not understood: 1.2.3.4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := CheckCA(tt.text, now)
			switch {
			case tt.want == "" && (err != nil || c == nil):
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error = %v, want %q in it", err, tt.want)
			case tt.want != "" && c != nil:
				t.Error("an error, and a certificate")
			}
		})
	}
}

func TestVerifyLeaf(t *testing.T) {
	t.Parallel()
	const domain = "a1b2c3d4.tunnel.bailey.internal"
	const host = "docs." + domain
	star := "*." + domain
	ca := newCA(t, p256(), nil)
	rsaCA := newCA(t, rsa2048(), func(c *x509.Certificate) { c.Subject.CommonName = "second CA" })
	stranger := newCA(t, p384(), func(c *x509.Certificate) { c.Subject.CommonName = "stranger" })
	namesake := newCA(t, p384(), nil) // the name of ca, another key
	gone := newCA(t, p256(), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	constrained := newCA(t, p384(), func(c *x509.Certificate) {
		c.Subject.CommonName, c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = "constrained", []string{"example.com"}, true
	})

	issue := func(by *x509.Certificate, key crypto.Signer, pub crypto.Signer, change func(*x509.Certificate), names ...string) *x509.Certificate {
		tmpl := leafTemplate(names...)
		if change != nil {
			change(tmpl)
		}
		return parse(t, sign(t, tmpl, by, pub.Public(), key))
	}
	good := issue(ca, p256(), leaf(), nil, star)

	// An intermediate that the registered CA has signed, and a leaf below it.
	midTmpl := caTemplate()
	midTmpl.Subject.CommonName = "intermediate"
	mid := parse(t, sign(t, midTmpl, ca, p384().Public(), p256()))
	below := issue(mid, p384(), leaf(), nil, star)

	// A leaf that claims to be signed by ca and is not: the issuer's name and key
	// identifier are copied, the key is another's.
	forged := func() *x509.Certificate {
		fake := *ca
		fake.PublicKey = p384().Public()
		return issue(&fake, p384(), leaf(), nil, star)
	}()

	live := []*x509.Certificate{ca, rsaCA}
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		live  []*x509.Certificate
		host  string
		by    *x509.Certificate // who signed it, if it is good
		want  string
	}{
		{name: "wildcard", chain: []*x509.Certificate{good}, by: ca},
		{name: "exact name", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, "other."+domain, host)}, by: ca},
		{name: "second CA", chain: []*x509.Certificate{issue(rsaCA, rsa2048(), leaf(), nil, star)}, by: rsaCA},
		{name: "RSA leaf", chain: []*x509.Certificate{issue(ca, p256(), rsa2048(), nil, star)}, by: ca},
		{name: "no extended key usage", chain: []*x509.Certificate{issue(ca, p256(), leaf(), func(c *x509.Certificate) { c.ExtKeyUsage = nil }, star)}, by: ca},
		{name: "with its CA in the chain", chain: []*x509.Certificate{good, ca}, by: ca},
		{name: "renewed CA, the old one first", chain: []*x509.Certificate{good}, live: []*x509.Certificate{gone, ca}, by: ca},
		{name: "apex by its exact name", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, domain, star)}, host: domain, by: ca},
		{name: "upper case in the certificate", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, strings.ToUpper(host))}, by: ca},

		{name: "nothing", want: "sent no certificate"},
		{name: "no CA", chain: []*x509.Certificate{good}, live: []*x509.Certificate{}, want: "the tunnel has no CA"},
		{name: "through an intermediate", chain: []*x509.Certificate{below, mid}, want: `a chain with "CN=intermediate" in it`},
		{name: "below an intermediate that is not sent", chain: []*x509.Certificate{below}, want: "not a registered CA"},
		{name: "the intermediate itself", chain: []*x509.Certificate{mid}, want: "is that of a CA"},
		{name: "a stranger's CA in the chain", chain: []*x509.Certificate{good, stranger}, want: "which is not registered"},
		{name: "signed by a stranger", chain: []*x509.Certificate{issue(stranger, p384(), leaf(), nil, star)}, want: `was issued by "CN=stranger"`},
		{name: "signed by a CA of the same name", chain: []*x509.Certificate{issue(namesake, p384(), leaf(), nil, star)}, want: "another CA of the same name"},
		{name: "forged", chain: []*x509.Certificate{forged}, want: "not signed with that CA's key"},
		{name: "archived CA", chain: []*x509.Certificate{good}, live: []*x509.Certificate{rsaCA}, want: "not a registered CA of this tunnel, or not any more"},
		{name: "expired CA", chain: []*x509.Certificate{good}, live: []*x509.Certificate{gone}, want: `the registered CA "CN=office CA" has expired`},
		{name: "self-signed", chain: []*x509.Certificate{parse(t, sign(t, leafTemplate(star), leafTemplate(star), leaf().Public(), leaf()))}, want: "no authority key identifier"},
		{name: "the CA as its own leaf", chain: []*x509.Certificate{newCA(t, p256(), func(c *x509.Certificate) { c.DNSNames = []string{star} })}, want: "is that of a CA"},
		{name: "no authority key id", chain: []*x509.Certificate{parse(t, without(t, good, p256(), oidAuthorityKeyID))}, want: "no authority key identifier"},
		{name: "expired", chain: []*x509.Certificate{issue(ca, p256(), leaf(), func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, star)}, want: "has expired"},
		{name: "not yet valid", chain: []*x509.Certificate{issue(ca, p256(), leaf(), func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }, star)}, want: "is not valid before"},
		{name: "wrong usage", chain: []*x509.Certificate{issue(ca, p256(), leaf(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, star)}, want: "no serverAuth"},
		{name: "no names", chain: []*x509.Certificate{issue(ca, p256(), leaf(), func(c *x509.Certificate) { c.Subject.CommonName = host })}, want: "no DNS name"},
		{name: "another host", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, "wiki."+domain)}, want: "is for wiki." + domain},
		{name: "another tunnel", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, "*.zzzzzzzz.tunnel.bailey.internal")}, want: "not for " + host},
		{name: "wildcard for two labels", chain: []*x509.Certificate{good}, host: "a.docs." + domain, want: "(a * stands for one label)"},
		{name: "wildcard for the apex", chain: []*x509.Certificate{good}, host: domain, want: "not for " + domain},
		{name: "wildcard at the top", chain: []*x509.Certificate{issue(ca, p256(), leaf(), nil, "*")}, want: "not for " + host},
		{name: "RSA 1024 leaf", chain: []*x509.Certificate{issue(ca, p256(), rsa1024(), nil, star)}, want: "RSA key of 1024 bits"},
		{name: "Ed25519 leaf", chain: []*x509.Certificate{issue(ca, p256(), ed(), nil, star)}, want: "a key of Ed25519"},
		{name: "P-224 leaf", chain: []*x509.Certificate{issue(ca, p256(), p224(), nil, star)}, want: "on P-224"},
		{name: "SHA-1", chain: []*x509.Certificate{parse(t, remake(t, issue(rsaCA, rsa2048(), leaf(), nil, star), rsa2048(), nil, oidSHA1WithRSA))}, want: "signed with SHA1-RSA"},
		{name: "beyond the CA's name constraints", chain: []*x509.Certificate{issue(constrained, p384(), leaf(), nil, star)}, live: []*x509.Certificate{constrained}, want: "is refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.live == nil {
				tt.live = live
			}
			if tt.host == "" {
				tt.host = host
			}
			by, err := VerifyLeaf(tt.chain, tt.live, tt.host, now)
			switch {
			case tt.want == "" && (err != nil || !by.Equal(tt.by)):
				t.Errorf("by %v, error %v", by, err)
			case tt.want != "" && (err == nil || by != nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("by %v, error %v, want %q in it", by, err, tt.want)
			}
		})
	}
}

func FuzzCheckCA(f *testing.F) {
	good := inPEM(newCA(f, p256(), nil).Raw)
	f.Add(good)
	f.Add(append(bytes.Clone(good), good...))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\na: b\n\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := CheckCA(text, now)
		if (c == nil) == (err == nil) {
			t.Fatal("neither a certificate nor an error, or both")
		}
		if err != nil {
			return
		}
		// What is accepted is one certificate, and a CA.
		if !c.IsCA || bytes.Count(text, []byte("BEGIN CERTIFICATE")) != 1 {
			t.Fatalf("accepted: %s", text)
		}
	})
}

func FuzzVerifyLeaf(f *testing.F) {
	ca := newCA(f, p256(), nil)
	f.Add(sign(f, leafTemplate("*.x.tunnel.bailey.internal"), ca, leaf().Public(), p256()), "docs.x.tunnel.bailey.internal")
	f.Add(ca.Raw, "")
	f.Fuzz(func(t *testing.T, der []byte, host string) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		by, err := VerifyLeaf([]*x509.Certificate{c}, []*x509.Certificate{ca}, host, now)
		if err == nil && (c.CheckSignatureFrom(by) != nil || c.VerifyHostname(host) != nil) {
			t.Fatal("accepted a certificate that the CA has not signed for this host")
		}
	})
}
