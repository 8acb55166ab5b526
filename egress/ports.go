package egress

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Ports is a range of ports, both ends included. It is written as a number (443), a
// range ("8000-8100") or "any".
type Ports struct{ First, Last uint16 }

// Port is the range of one port.
func Port(p uint16) Ports { return Ports{p, p} }

// AnyPort is the range of all.
var AnyPort = Ports{1, 65535}

// Contains reports whether port is in the range.
func (p Ports) Contains(port uint16) bool { return p.First <= port && port <= p.Last }

func (p Ports) String() string {
	switch {
	case p == AnyPort:
		return "any"
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText implements [encoding.TextMarshaler].
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (p *Ports) UnmarshalText(text []byte) error {
	if string(text) == "any" {
		*p = AnyPort
		return nil
	}
	first, last, isRange := strings.Cut(string(text), "-")
	if !isRange {
		last = first
	}
	var err error
	for _, end := range []struct {
		text string
		to   *uint16
	}{{first, &p.First}, {last, &p.Last}} {
		n, parseErr := strconv.ParseUint(strings.TrimSpace(end.text), 10, 16)
		if parseErr != nil || n == 0 {
			err = fmt.Errorf("port %.40q: want a number from 1 to 65535, a range like 8000-8100, or any", text)
		}
		*end.to = uint16(n)
	}
	if err == nil && p.First > p.Last {
		err = fmt.Errorf("ports %q: the range ends before it begins", text)
	}
	return err
}

// UnmarshalJSON takes a number too, as people write it.
func (p *Ports) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		text = string(data)
	}
	return p.UnmarshalText([]byte(text))
}
