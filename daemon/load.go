package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/bailey-platform/bailey/model"
	"go.yaml.in/yaml/v3"
)

// Inputs are where a [Config] comes from, besides the defaults.
type Inputs struct {
	// Flags holds the settings given on the command line, by name.
	Flags map[string]string
	// Env looks up an environment variable, as os.LookupEnv does.
	Env func(name string) (value string, ok bool)
	// File is the YAML file's path; "" for none.
	File string
}

// Sources says for each setting, by name, where its value came from.
type Sources map[string]string

// SourceDefault is the source of a setting that nobody set.
const SourceDefault = "default"

// anthropicKeyEnv is the variable the official tools use.
const anthropicKeyEnv = "ANTHROPIC_API_KEY"

// Load puts a Config together and checks it. A setting that does not exist or
// cannot be read is a [*SettingError] that names it and where it stands.
func Load(in Inputs) (*Config, Sources, error) {
	cfg := Defaults()
	settings := cfg.Settings()
	l := loader{settings: map[string]Setting{}, sources: Sources{}}
	for _, s := range settings {
		l.settings[s.Name] = s
		l.sources[s.Name] = SourceDefault
	}
	if in.File != "" {
		if err := l.file(in.File); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range settings {
		// An empty variable counts as unset, as compose files often have them.
		if text, ok := in.Env(s.Env); ok && text != "" {
			if err := l.set(s, text, "env "+s.Env); err != nil {
				return nil, nil, err
			}
		}
		if text, ok := in.Flags[s.Name]; ok {
			if s.Name == "db" && hasPassword(text) {
				return nil, nil, &SettingError{Name: s.Name, Source: "flag --db", Problem: fmt.Sprintf("a password on the command line can be read by every user of the host: set %s in the environment, or name a file with ?passfile=PATH", s.Env)}
			}
			if err := l.set(s, text, "flag --"+s.Name); err != nil {
				return nil, nil, err
			}
		}
	}
	if err := l.modelKey(&cfg, in.Env); err != nil {
		return nil, nil, err
	}
	err := cfg.Check()
	if bad, ok := errors.AsType[*SettingError](err); ok && bad.Source == "" && l.sources[bad.Name] != SourceDefault {
		bad.Source = l.sources[bad.Name]
	}
	return &cfg, l.sources, err
}

type loader struct {
	settings map[string]Setting
	sources  Sources
}

func (l *loader) set(s Setting, text, source string) error {
	if err := s.Set(text); err != nil {
		return &SettingError{Name: s.Name, Source: source, Problem: err.Error()}
	}
	l.sources[s.Name] = source
	return nil
}

// modelKey finds the model's key where no setting names one. Anthropic's own
// variable is used for Anthropic's own endpoint only: another address must not
// be handed a key that was not meant for it.
func (l *loader) modelKey(cfg *Config, env func(string) (string, bool)) error {
	if cfg.ModelKey != "" && cfg.ModelKeyFile != "" {
		return badSetting("model-key-file", "%s is set as well (%s): leave one of them out",
			l.settings["model-key"].Env, l.sources["model-key-file"])
	}
	ours := cfg.ModelProvider == model.Anthropic && (cfg.ModelURL == "" || isAnthropic(cfg.ModelURL))
	if key, ok := env(anthropicKeyEnv); ok && ours && cfg.ModelKey == "" && cfg.ModelKeyFile == "" {
		return l.set(l.settings["model-key"], key, "env "+anthropicKeyEnv)
	}
	return nil
}

func isAnthropic(rawURL string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && u.Scheme == "https" && u.Host == "api.anthropic.com"
}

// configFileMax bounds the configuration file in bytes.
const configFileMax = 1 << 20

func (l *loader) file(path string) error {
	data, err := readSmall(path, configFileMax)
	if err != nil {
		return &SettingError{Name: "config", Source: path, Problem: err.Error(), Err: err}
	}
	pairs, err := parseFile(data)
	if err != nil {
		return &SettingError{Name: "config", Source: path, Problem: err.Error(), Err: err}
	}
	for _, p := range pairs {
		source := fmt.Sprintf("%s:%d", path, p.line)
		s, ok := l.settings[p.key]
		switch {
		case !ok:
			return &SettingError{Name: p.key, Source: source, Problem: "there is no such setting; `bailey config example` lists them all"}
		case s.Secret:
			return &SettingError{Name: p.key, Source: source, Problem: fmt.Sprintf("a secret is not written into this file: use %s-file, or %s in the environment", s.Name, s.Env)}
		case p.mapping && s.Type() != typeMap:
			return &SettingError{Name: p.key, Source: source, Problem: "must be a single value"}
		case p.key == "db" && hasPassword(p.text):
			return &SettingError{Name: p.key, Source: source, Problem: fmt.Sprintf("a password is not written into this file: set %s in the environment, or name a file with ?passfile=PATH", s.Env)}
		}
		if err := l.set(s, p.text, source); err != nil {
			return err
		}
	}
	return nil
}

func hasPassword(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false // Check refuses it
	}
	_, inUser := u.User.Password()
	return inUser || u.Query().Has("password")
}

// readSmall reads a file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// A pair is one key of the file with its value as [Setting.Set] takes it.
type pair struct {
	key, text string
	mapping   bool // text is that of a mapping
	line      int
}

// parseFile reads a YAML document that is one flat mapping. Aliases, a
// second document and a key given twice are refused: a setting that does not do
// what it seems to say is worse than an error.
func parseFile(data []byte) ([]pair, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil // nothing but comments
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: must be a list of `name: value` lines", root.Line)
	}
	seen := map[string]int{}
	var pairs []pair
	for i := 0; i < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if first, dup := seen[k.Value]; dup {
			return nil, fmt.Errorf("line %d: %s is already set on line %d", k.Line, k.Value, first)
		}
		seen[k.Value] = k.Line
		text, err := scalarText(v)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", v.Line, k.Value, err)
		}
		pairs = append(pairs, pair{k.Value, text, v.Kind == yaml.MappingNode, k.Line})
	}
	return pairs, nil
}

// scalarText returns a scalar as it is written, and a mapping of scalars as
// name=value pairs.
func scalarText(v *yaml.Node) (string, error) {
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
		return "", errors.New("has no value; leave the line out for the default")
	case v.Kind == yaml.ScalarNode:
		return v.Value, nil
	case v.Kind == yaml.MappingNode:
		var pairs []string
		for i := 0; i < len(v.Content); i += 2 {
			if v.Content[i].Kind != yaml.ScalarNode || v.Content[i+1].Kind != yaml.ScalarNode {
				return "", errors.New("must be a mapping of text to text")
			}
			pairs = append(pairs, v.Content[i].Value+"="+v.Content[i+1].Value)
		}
		return strings.Join(pairs, ","), nil
	}
	return "", errors.New("must be a single value")
}
