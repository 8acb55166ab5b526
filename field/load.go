package field

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/settings"
)

// Invalid is the error of a configuration that cannot be meant: what is wrong with it,
// a line for each thing.
type Invalid = settings.Invalid

// example is where all settings are.
const example = "`bailey worker --example`"

// Load reads a configuration file. It says what no setting means; what is wrong with the
// values, [Config.Validate] does.
func Load(path string) (*Config, error) {
	data, err := settings.ReadFile(path)
	if err != nil {
		return nil, &Invalid{Path: path, Problems: []string{err.Error()}}
	}
	c, problems := parse(data)
	if len(problems) > 0 {
		return nil, &Invalid{Path: path, Problems: problems}
	}
	c.path = path
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, &Invalid{Path: path, Problems: []string{err.Error()}}
	}
	if err := c.resolve(dir); err != nil {
		return nil, &Invalid{Path: path, Problems: []string{err.Error()}}
	}
	return c, nil
}

// parse reads a configuration.
func parse(data []byte) (*Config, []string) {
	// Once strictly, to find what no setting means.
	c := new(Config)
	root, problems := settings.Parse(data, c, example)
	if len(problems) > 0 {
		return nil, problems
	} else if root == nil {
		return c, nil // nothing but comments
	}
	c.root = root
	// And then each environment anew, over what holds for all of them.
	for i, node := range environmentNodes(root) {
		e := Environment{Settings: c.Settings.clone()}
		if err := node.Decode(&e); err != nil {
			return nil, settings.Problems(err, example)
		}
		c.Environments[i] = e
	}
	return c, nil
}

// environmentNodes returns the entries of the list of environments.
func environmentNodes(root *yaml.Node) []*yaml.Node {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if list := root.Content[i+1]; root.Content[i].Value == "environments" {
			for list.Kind == yaml.AliasNode {
				list = list.Alias
			}
			return list.Content
		}
	}
	return nil
}

// clone copies what decoding into a copy would otherwise change.
func (s Settings) clone() Settings {
	env := make(map[string]string, len(s.Sandbox.Env))
	for name, value := range s.Sandbox.Env {
		env[name] = value
	}
	s.Sandbox.Env = env
	return s
}

// ImagePath makes an image that is on this host an absolute path, counted from dir: what
// begins with a dot, and what is there by that name. Anything else is the name of an image
// that a daemon has, or a mistake, and stays as it is.
func ImagePath(image, dir string) (string, error) {
	if image == "" || filepath.IsAbs(image) {
		return image, nil
	}
	path, err := filepath.Abs(filepath.Join(dir, image))
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); err != nil && !strings.HasPrefix(image, "./") && !strings.HasPrefix(image, "../") {
		return image, nil
	}
	return path, nil
}

// resolve makes the paths of a file absolute.
func (c *Config) resolve(dir string) error {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	abs(&c.Data)
	abs(&c.WorkDir)
	settings := []*Settings{&c.Settings}
	for i := range c.Environments {
		abs(&c.Environments[i].KeyFile)
		settings = append(settings, &c.Environments[i].Settings)
	}
	for _, s := range settings {
		var err error
		if s.Sandbox.Image, err = ImagePath(s.Sandbox.Image, dir); err != nil {
			return err
		}
		for i := range s.Credentials {
			abs(&s.Credentials[i].From.File)
		}
	}
	for i := range c.Audit.Sinks {
		c.Audit.Sinks[i] = resolveSink(c.Audit.Sinks[i], abs)
	}
	return nil
}

// resolveSink makes the paths of an audit sink absolute, in the grammar of sink.Open.
// What cannot be read is left for [Config.Validate] to find.
func resolveSink(text string, abs func(*string)) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	abs(&u.Opaque) // of file:PATH and syslog:PATH; what begins with a slash is none
	if q := u.Query(); q.Has("ca") {
		ca := q.Get("ca")
		abs(&ca)
		q.Set("ca", ca)
		u.RawQuery = q.Encode()
	}
	return u.String()
}

// Fingerprint names a configuration: two that are the same have the same. It holds no
// secret.
func (c *Config) Fingerprint() string {
	written := *c
	written.Environments = slices.DeleteFunc(slices.Clone(c.Environments), func(e Environment) bool { return e.gone })
	text, err := yaml.Marshal(&written)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}
