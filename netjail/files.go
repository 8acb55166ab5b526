package netjail

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Where a box finds what it needs to know of its network.
const (
	ResolvConfPath = "/etc/resolv.conf"

	// BundlePath is where the certificates are that the box's programs trust. Debian,
	// Ubuntu and Alpine have theirs there, and programs of others are told.
	BundlePath = "/etc/ssl/certs/ca-certificates.crt"
)

// bundleVariables are what programs are told by where the certificates are: in turn
// OpenSSL, Go and others; Node.js; Python's requests; curl; git; pip; cargo; AWS's tools;
// Deno; conda; Google Cloud's tools; Ruby's bundler; Nix.
var bundleVariables = []string{
	"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT",
	"CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT", "CONDA_SSL_VERIFY", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
	"BUNDLE_SSL_CA_CERT", "NIX_SSL_CERT_FILE",
}

// Files writes what the box has to see into dir, which must exist and be the box's alone,
// and returns it by its path in the box, for [sandbox.Spec.Files]. baseBundle is the
// certificates that the image trusts (PEM), to which the box's authority is added where
// there is one; without one the box's own bundle stays.
func (j *Jail) Files(dir string, baseBundle []byte) (map[string]string, error) {
	files := map[string][]byte{
		ResolvConfPath: fmt.Appendf(nil, "nameserver %s\n", Resolver),
	}
	if j.authority != nil {
		bundle := bytes.TrimRight(baseBundle, "\n")
		if len(bundle) > 0 {
			bundle = append(slices.Clone(bundle), '\n')
		}
		files[BundlePath] = append(bundle, j.authority.pem()...)
	}
	written := make(map[string]string)
	for path, content := range files {
		name := filepath.Join(dir, filepath.Base(path))
		// Readable by the box's user, whoever that is; none of it is secret.
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return nil, fmt.Errorf("files of a box's network: %w", err)
		}
		if err := os.Chmod(name, 0o644); err != nil { // whatever the umask is
			return nil, fmt.Errorf("files of a box's network: %w", err)
		}
		written[path] = name
	}
	return written, nil
}

// Env is what the box's environment says of its network ("KEY=value"): the placeholders
// of the credentials as they are bound now, and where the certificates are. None of it is
// secret.
func (j *Jail) Env() []string {
	var env []string
	for _, c := range j.state.Load().credentials {
		env = append(env, c.name+"="+c.placeholder)
	}
	if j.authority != nil {
		for _, name := range bundleVariables {
			env = append(env, name+"="+BundlePath)
		}
	}
	return env
}
