package field

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Invalid is the error of a configuration that cannot be meant: what is wrong with it,
// a line for each thing.
type Invalid struct {
	Path     string   // of the file; empty if the problem is not one of its lines
	Problems []string // those of a file with "line N: " before them
}

func (e *Invalid) Error() string {
	before := ""
	if e.Path != "" {
		before = e.Path + ": "
	}
	return before + strings.Join(e.Problems, "\n"+before)
}

// fileMax bounds a configuration file in bytes.
const fileMax = 1 << 20

// Load reads a configuration file. It says what no setting means; what is wrong with the
// values, [Config.Validate] does.
func Load(path string) (*Config, error) {
	data, err := readSmall(path)
	if err != nil {
		return nil, &Invalid{path, []string{err.Error()}}
	}
	c, problems := parse(data)
	if len(problems) > 0 {
		return nil, &Invalid{path, problems}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, &Invalid{path, []string{err.Error()}}
	}
	c.resolve(dir)
	return c, nil
}

// parse reads a configuration.
func parse(data []byte) (*Config, []string) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return new(Config), nil
	case err != nil:
		return nil, problems(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, []string{"there is more than one document"}
	}
	if root := doc.Content[0]; root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return new(Config), nil // nothing but comments
	} else if root.Kind != yaml.MappingNode {
		return nil, []string{fmt.Sprintf("line %d: must be a list of `name: value` lines", root.Line)}
	}

	// Once strictly, to find what no setting means.
	dec = yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	c := new(Config)
	if err := dec.Decode(c); err != nil {
		return nil, problems(err)
	}
	// And then each environment anew, over what holds for all of them.
	for i, node := range environmentNodes(doc.Content[0]) {
		e := Environment{Settings: c.Settings.clone()}
		if err := node.Decode(&e); err != nil {
			return nil, problems(err)
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

var (
	unknownField = regexp.MustCompile(`^(line \d+: )field (\S+) not found in type \S+$`)
	secretField  = regexp.MustCompile(`^(key|token|secret|password|value|environment-key)$`)
)

// problems words what the decoder says for people.
func problems(err error) []string {
	var wrong *yaml.TypeError
	if !errors.As(err, &wrong) {
		return []string{strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var all []string
	for _, text := range wrong.Errors {
		if m := unknownField.FindStringSubmatch(text); m != nil {
			text = fmt.Sprintf("%sthere is no setting %q here; docs/worker.yaml has them all", m[1], m[2])
			if secretField.MatchString(m[2]) {
				text = fmt.Sprintf("%s%q: a secret is not written into this file: name a file, a variable or a command (key-file, key-env, from)", m[1], m[2])
			}
		}
		all = append(all, text)
	}
	return all
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

// readSmall reads a file of at most fileMax bytes.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err == nil && len(data) > fileMax {
		err = fmt.Errorf("larger than %d bytes", fileMax)
	}
	return data, err
}
