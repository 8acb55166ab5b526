package netjail

import (
	"encoding/json"
	"fmt"
)

// A saved is what of a jail a box remembers, and must find again when it continues from
// a checkpoint: which address stands for which name, its placeholders, and whom it
// trusts.
type saved struct {
	Format       int
	Names        []string
	Placeholders map[string]string
	Authority    *savedAuthority
}

const stateFormat = 1

// State returns what a jail needs to serve a box that continues from a checkpoint of this
// one's, now or later, here or in several copies: see [Options.State]. It holds the key of
// the box's authority, so it has to be kept as safe as the checkpoint itself; no
// credential is in it.
func (j *Jail) State() ([]byte, error) {
	s := saved{Format: stateFormat, Names: j.names.list(), Placeholders: j.secrets.all()}
	if j.authority != nil {
		var err error
		if s.Authority, err = j.authority.save(); err != nil {
			return nil, err
		}
	}
	return json.Marshal(s)
}

func decodeState(data []byte) (saved, error) {
	var s saved
	if data == nil {
		return s, nil
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("state of a jail: %w", err)
	}
	if s.Format != stateFormat || len(s.Names) > fakeMax {
		return s, fmt.Errorf("state of a jail: format %d with %d names is not one of this version", s.Format, len(s.Names))
	}
	return s, nil
}
