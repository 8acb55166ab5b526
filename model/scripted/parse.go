package scripted

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// maxScriptBytes bounds a script file.
const maxScriptBytes = 4 << 20

// Parse reads scripts from YAML, one a document (JSON is YAML too). The keys
// are the lower-case names on the types of this package; an unknown one is an
// error, and so is a script that cannot be played.
func Parse(data []byte) ([]Script, error) {
	if len(data) > maxScriptBytes {
		return nil, fmt.Errorf("scripted: a script file may have %d bytes, this has %d", maxScriptBytes, len(data))
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	var scripts []Script
	for {
		var s Script
		err := decoder.Decode(&s)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("scripted: document %d: %w", len(scripts)+1, err)
		}
		if s.Name == "" {
			s.Name = fmt.Sprintf("document %d", len(scripts)+1)
		}
		if err := s.Validate(); err != nil {
			return nil, fmt.Errorf("scripted: %w", err)
		}
		scripts = append(scripts, s)
	}
	if len(scripts) == 0 {
		return nil, errors.New("scripted: the file has no script")
	}
	return scripts, nil
}
