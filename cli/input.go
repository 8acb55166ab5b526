package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/settings"
)

// inputMax bounds a file given with --file, in bytes: the API's own limit for a
// request.
const inputMax = 32 << 20

// fileFlag adds --file to a command that sends a whole object.
func fileFlag(cmd *cobra.Command) *string {
	path := cmd.Flags().StringP("file", "f", "", "read the request from a JSON or YAML `file` (- is standard input); flags change single fields of it")
	must(cmd.MarkFlagFilename("file", "json", "yaml", "yml"))
	return path
}

// readObject reads the file given with --file into the body of a request. Without
// one it leaves body as it is. A field that the API does not have is refused.
func (p *Program) readObject(path string, body any) error {
	if path == "" {
		return nil
	}
	data, err := p.readInput(path)
	if err != nil {
		return err
	}
	data, err = asJSON(data)
	if err != nil {
		return usagef("%s: %v", path, err)
	}
	if err := api.DecodeStrict(data, body); err != nil {
		return usagef("%s: %v", path, err)
	}
	return nil
}

func (p *Program) readInput(path string) ([]byte, error) {
	in := p.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("%v", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, inputMax+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > inputMax {
		return nil, usagef("%s is larger than %d MiB, the limit of a request", path, inputMax>>20)
	}
	return data, nil
}

// asJSON turns one YAML document into JSON. JSON is YAML, but is left alone so
// that its numbers and error positions stay what they are.
func asJSON(data []byte) ([]byte, error) {
	if t := bytes.TrimSpace(data); len(t) > 0 && (t[0] == '{' || t[0] == '[' || t[0] == '"') {
		return data, nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var v any
	if err := dec.Decode(&v); errors.Is(err, io.EOF) {
		return nil, errors.New("is empty")
	} else if err != nil {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	return json.Marshal(v)
}

// timeFlag adds a flag for a time, which may be in days.
func timeFlag(cmd *cobra.Command, name string, value time.Duration, usage string) *time.Duration {
	cmd.Flags().Var((*timeValue)(&value), name, usage)
	return &value
}

// A timeValue is the value of a flag for a time.
type timeValue time.Duration

func (v *timeValue) Type() string { return "duration" }

func (v *timeValue) String() string {
	if *v == 0 {
		return "0" // which help takes for no default
	}
	return time.Duration(*v).String()
}

func (v *timeValue) Set(text string) error {
	var d settings.Duration
	if err := d.Set(text); err != nil {
		return err
	}
	if d == settings.Never {
		return errors.New("never is no time here")
	}
	*v = timeValue(d)
	return nil
}
