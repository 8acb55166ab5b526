package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]struct {
		family  Family
		version Version
	}{
		"runc version 1.1.5+ds1":                {Runc, Version{1, 1, 5}},
		"runc version 1.4.0-rc.3":               {Runc, Version{1, 4, 0}},
		"crun version 1.8.1":                    {Crun, Version{1, 8, 1}},
		"crun version 1.28":                     {Crun, Version{1, 28, 0}},
		"crun version UNKNOWN":                  {Crun, Version{}},
		"youki version: 0.5.7":                  {Youki, Version{0, 5, 7}},
		"youki version 0.6.0":                   {Youki, Version{0, 6, 0}},
		"runsc version release-20240729.0":      {Runsc, Version{20240729, 0, 0}},
		"runsc version google-594323":           {Runsc, Version{}},
		"kata-runtime  : 3.2.0":                 {Kata, Version{3, 2, 0}},
		"railcar 1.0":                           {Other, Version{}},
		"":                                      {Other, Version{}},
		"runc version 99999999999999999999.1.1": {Runc, Version{1<<63 - 1, 1, 1}},
	} {
		if r := Parse(line); r.Family != want.family || r.Version != want.version {
			t.Errorf("%q: %+v, want %q %v", line, r, want.family, want.version)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("runc version 1.1.5+ds1")
	f.Add("kata-runtime  : 3.2.0")
	f.Fuzz(func(t *testing.T, line string) {
		for _, hole := range Parse(line).Holes() {
			if hole.String() == "" {
				t.Error("nothing is said of a hole")
			}
		}
	})
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := filepath.Join(dir, "named-otherwise")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho crun version 1.14\necho commit: x\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r, err := Identify(t.Context(), script); err != nil || r != (Runtime{Crun, Version{1, 14, 0}, "crun version 1.14"}) {
		t.Errorf("%+v, %v", r, err)
	}
	for _, path := range []string{"", "crun", "/no/such/runtime", dir, "/bin/false"} {
		if r, err := Identify(t.Context(), path); err == nil {
			t.Errorf("%q: %+v", path, r)
		}
	}
}

func TestHoles(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"runc version 1.0.0":        "41579 31133 21626!",
		"runc version 1.1.11":       "41579 31133 21626!",
		"runc version 1.1.12":       "41579 31133",
		"runc version 1.2.7":        "41579 31133",
		"runc version 1.2.8":        "41579",
		"runc version 1.3.2":        "41579 31133",
		"runc version 1.3.3":        "41579",
		"runc version 1.3.6":        "",
		"runc version 1.4.2":        "41579",
		"runc version 1.4.3":        "",
		"runc version 1.5.0":        "",
		"runc version 2.0.0":        "",
		"crun version 1.4.3":        "47766 27650!",
		"crun version 1.8.1":        "47766",
		"crun version 1.28":         "",
		"crun version UNKNOWN":      "47766 27650!",
		"youki version 0.5.6":       "31133",
		"youki version 0.7.0":       "",
		"something else entirely 1": "",
	} {
		open := Parse(line).Holes()
		names := strings.Fields(want)
		if len(open) != len(names) {
			t.Errorf("%s: %v, want %q", line, open, want)
			continue
		}
		for i, name := range names {
			number, grave := strings.CutSuffix(name, "!")
			if text := open[i].String(); !strings.Contains(text, number) || open[i].Grave != grave {
				t.Errorf("%s: %s, grave %t, want %s", line, text, open[i].Grave, name)
			}
		}
	}
}
