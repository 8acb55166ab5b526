package egress

import (
	"errors"
	"net/url"
	"strings"
)

// A pathPattern is a path of a rule, as segments. The last may be "**".
type pathPattern []string

// pathMax bounds a path that is judged, in bytes.
const pathMax = 8 << 10

func parsePathPattern(s string) (pathPattern, error) {
	if !strings.HasPrefix(s, "/") {
		return nil, errors.New("a path begins with /")
	}
	if strings.ContainsAny(s, "?#") {
		return nil, errors.New("a path is without query and fragment")
	}
	plain := strings.ReplaceAll(s, "*", "x")
	if _, err := pathSegments(plain); err != nil {
		return nil, err
	}
	segments := strings.Split(s[1:], "/")
	for i, segment := range segments {
		if strings.Contains(segment, "**") && (segment != "**" || i != len(segments)-1) {
			return nil, errors.New("** stands alone and at the end, as in /v1/**")
		}
	}
	return segments, nil
}

func (p pathPattern) String() string { return "/" + strings.Join(p, "/") }

func (p pathPattern) match(segments []string) bool {
	for i, pattern := range p {
		if pattern == "**" {
			return i < len(segments) // "/v1/**" is "/v1/" and all below, not "/v1"
		}
		if i >= len(segments) || !matchSegment(pattern, segments[i]) {
			return false
		}
	}
	return len(p) == len(segments)
}

// matchSegment matches with "*" for any text within the segment.
func matchSegment(pattern, segment string) bool {
	parts := strings.Split(pattern, "*")
	first, rest := parts[0], parts[1:]
	segment, ok := strings.CutPrefix(segment, first)
	if len(rest) == 0 {
		return ok && segment == ""
	}
	if !ok {
		return false
	}
	last := rest[len(rest)-1]
	for _, part := range rest[:len(rest)-1] {
		i := strings.Index(segment, part)
		if i < 0 {
			return false
		}
		segment = segment[i+len(part):]
	}
	return len(segment) >= len(last) && strings.HasSuffix(segment, last)
}

// pathSegments decodes a path as it stands in a request. A path that servers read in
// different ways is refused, as a rule would judge one reading and the server take
// another.
func pathSegments(escaped string) ([]string, error) {
	if len(escaped) > pathMax {
		return nil, errors.New("the path is too long to be judged")
	}
	if !strings.HasPrefix(escaped, "/") {
		return nil, errors.New("the path does not begin with /")
	}
	segments := strings.Split(escaped[1:], "/")
	for i, segment := range segments {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return nil, errors.New("the path has a broken % in it")
		}
		name, _, _ := strings.Cut(plain, ";") // servers drop what follows
		switch {
		case strings.ContainsAny(plain, "/\\%"):
			return nil, errors.New("the path has a slash, a backslash or a % in disguise")
		case strings.ContainsFunc(plain, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\uFFFD' }):
			return nil, errors.New("the path has a control character, or no valid UTF-8, in it")
		case name == "." || name == "..":
			return nil, errors.New("the path goes up or stays with . or .. in it")
		case plain == "" && i != len(segments)-1:
			return nil, errors.New("the path has two slashes together")
		}
		segments[i] = plain
	}
	return segments, nil
}
