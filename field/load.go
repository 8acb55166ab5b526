package field

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/settings"
)

// Invalid is the error of a configuration that cannot be meant: what is wrong with it,
// a line for each thing.
type Invalid = settings.Invalid

// example is where all settings are.
const example = "docs/worker.yaml"

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
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, &Invalid{Path: path, Problems: []string{err.Error()}}
	}
	c.resolve(dir)
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

// resolve makes the paths of a file absolute.
func (c *Config) resolve(dir string) {
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
		// Anything else may be the name of an image that a daemon has.
		if strings.HasPrefix(s.Sandbox.Image, "./") || strings.HasPrefix(s.Sandbox.Image, "../") {
			abs(&s.Sandbox.Image)
		}
		for i := range s.Credentials {
			abs(&s.Credentials[i].From.File)
		}
	}
}

// Fingerprint names a configuration: two that are the same have the same. It holds no
// secret.
func (c *Config) Fingerprint() string {
	text, err := yaml.Marshal(c)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}
