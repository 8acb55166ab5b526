package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
)

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		family  family
		version version
	}{
		"runc version 1.1.5+ds1":                {runc, version{1, 1, 5}},
		"runc version 1.4.0-rc.3":               {runc, version{1, 4, 0}},
		"crun version 1.8.1":                    {crun, version{1, 8, 1}},
		"crun version 1.28":                     {crun, version{1, 28, 0}},
		"crun version UNKNOWN":                  {crun, version{}},
		"youki version: 0.5.7":                  {youki, version{0, 5, 7}},
		"youki version 0.6.0":                   {youki, version{0, 6, 0}},
		"runsc version release-20240729.0":      {runsc, version{20240729, 0, 0}},
		"runsc version google-594323":           {runsc, version{}},
		"kata-runtime  : 3.2.0":                 {kata, version{3, 2, 0}},
		"railcar 1.0":                           {other, version{}},
		"":                                      {other, version{}},
		"runc version 99999999999999999999.1.1": {runc, version{1<<63 - 1, 1, 1}},
	} {
		if f, v := parseVersion(line); f != want.family || v != want.version {
			t.Errorf("%q: %q %v, want %q %v", line, f, v, want.family, want.version)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("runc version 1.1.5+ds1")
	f.Add("kata-runtime  : 3.2.0")
	f.Fuzz(func(t *testing.T, line string) {
		e := &engine{words: line}
		e.family, e.version = parseVersion(line)
		if _, err := e.judge(true); err != nil {
			t.Error(err)
		}
	})
}

func TestHoles(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		holes   []string
		refused bool
	}{
		"runc version 1.0.0":        {[]string{"41579", "31133", "21626"}, true},
		"runc version 1.1.11":       {[]string{"41579", "31133", "21626"}, true},
		"runc version 1.1.12":       {[]string{"41579", "31133"}, false},
		"runc version 1.2.7":        {[]string{"41579", "31133"}, false},
		"runc version 1.2.8":        {[]string{"41579"}, false},
		"runc version 1.3.2":        {[]string{"41579", "31133"}, false},
		"runc version 1.3.3":        {[]string{"41579"}, false},
		"runc version 1.3.6":        {nil, false},
		"runc version 1.4.2":        {[]string{"41579"}, false},
		"runc version 1.4.3":        {nil, false},
		"runc version 1.5.0":        {nil, false},
		"runc version 2.0.0":        {nil, false},
		"crun version 1.4.3":        {[]string{"47766", "27650"}, true},
		"crun version 1.8.1":        {[]string{"47766"}, false},
		"crun version 1.28":         {nil, false},
		"crun version UNKNOWN":      {[]string{"47766", "27650"}, true},
		"youki version 0.5.6":       {[]string{"31133"}, false},
		"youki version 0.7.0":       {nil, false},
		"something else entirely 1": {[]string{"Nothing is known"}, false},
	} {
		e := &engine{words: line}
		e.family, e.version = parseVersion(line)
		_, err := e.judge(false)
		if _, ok := errors.AsType[*sandbox.Unavailable](err); ok != want.refused {
			t.Errorf("%s: refused %t: %v", line, ok, err)
		}
		notes, err := e.judge(true)
		if err != nil || len(notes) != len(want.holes) {
			t.Errorf("%s: %q, %v", line, notes, err)
			continue
		}
		for i, hole := range want.holes {
			if !strings.Contains(notes[i], hole) {
				t.Errorf("%s: %q, want %s", line, notes[i], hole)
			}
		}
	}
}
