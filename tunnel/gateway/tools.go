package gateway

import (
	"errors"
	"fmt"
	"strings"
)

// toolRules say which tools of a route may be called, and are shown.
type toolRules struct {
	allow, deny []string // patterns; no allow means all
}

// patternsMax bounds the patterns of a list.
const patternsMax = 1000

// newToolRules reads patterns: names in which * stands for any text.
func newToolRules(allow, deny []string) (*toolRules, error) {
	for _, list := range [][]string{allow, deny} {
		if len(list) > patternsMax {
			return nil, fmt.Errorf("there are more than %d", patternsMax)
		}
		for _, p := range list {
			if p == "" || strings.Count(p, "*") > 4 {
				return nil, fmt.Errorf("%q is no name of a tool, nor a pattern with up to four *", p)
			}
		}
	}
	switch {
	case allow != nil && len(allow) == 0:
		return nil, errors.New(`allow is empty, which would allow none: leave it out, or say allow: ["*"], for all; deny: ["*"] for none`)
	case allow == nil && len(deny) == 0:
		return nil, nil
	}
	return &toolRules{allow, deny}, nil
}

// allows decides on a tool by its name, as it was called: a server that reads names
// loosely must not be loosely asked.
func (r *toolRules) allows(name string) bool {
	if r == nil {
		return true
	}
	for _, p := range r.deny {
		if matches(p, name) {
			return false
		}
	}
	if r.allow == nil {
		return true
	}
	for _, p := range r.allow {
		if matches(p, name) {
			return true
		}
	}
	return false
}

// matches reports whether a name fits a pattern.
func matches(pattern, name string) bool {
	before, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == name
	}
	name, ok := strings.CutPrefix(name, before)
	if !ok {
		return false
	}
	for {
		var part string
		part, rest, wild = strings.Cut(rest, "*")
		if !wild {
			return strings.HasSuffix(name, part)
		}
		// The earliest place leaves the most for the rest.
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
}
