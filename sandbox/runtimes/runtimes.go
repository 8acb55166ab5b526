// Package runtimes knows the container runtimes there are: which one an executable is,
// and which of their versions have defects that a box could leave through.
//
// It runs nothing but their own `--version`, and must not know what a box is made of.
// Start reading at [Identify].
package runtimes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A Family is runtimes that are used in the same way.
type Family string

// The families. Which one an executable is of is what it says of itself: the name of
// the file says nothing.
const (
	Runc  Family = "runc"
	Crun  Family = "crun"
	Youki Family = "youki"
	Runsc Family = "runsc"
	Kata  Family = "kata-runtime"
	Other Family = "" // not known here
)

// A Runtime is what a runtime says of itself.
type Runtime struct {
	Family  Family
	Version Version
	Words   string // the line that it gives as its version
}

// Identify asks a runtime what it is. path is that of an executable, and absolute.
func Identify(ctx context.Context, path string) (Runtime, error) {
	if !filepath.IsAbs(path) {
		return Runtime{}, fmt.Errorf("runtime %q: want the absolute path of an executable", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Runtime{}, fmt.Errorf("runtime: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Runtime{}, fmt.Errorf("runtime %s: want an executable", path)
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return Runtime{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return Parse(line), nil
}

// A Version is a runtime's: major, minor, patch. What is not given is 0, and so old.
type Version [3]int

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v Version) before(w Version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// "runc version 1.1.5+ds1", "crun version 1.8.1", "youki version: 0.5.7",
// "runsc version release-20240729.0", "kata-runtime  : 3.2.0".
var versionLine = regexp.MustCompile(`^(runc|crun|youki|runsc|kata-runtime)\s+(?:version)?[\s:]*(?:v|release-)?(\d+)(?:\.(\d+))?(?:\.(\d+))?`)

// Parse reads the first line that a runtime gives as its version.
func Parse(line string) Runtime {
	r := Runtime{Words: strings.ToValidUTF8(line, "?")}
	m := versionLine.FindStringSubmatch(line)
	if m == nil {
		name, _, _ := strings.Cut(line, " ")
		switch f := Family(name); f {
		case Runc, Crun, Youki, Runsc, Kata:
			r.Family = f
		}
		return r
	}
	r.Family = Family(m[1])
	for i := range r.Version {
		r.Version[i], _ = strconv.Atoi(m[2+i]) // digits, or nothing
	}
	return r
}

// A Hole is a defect of a runtime that a box, or what its image holds, could use to
// leave it.
type Hole struct {
	Family Family
	Name   string
	// Mended are the versions that are the first without it, one for each line of
	// releases; what comes after the last has it mended too.
	Mended []Version
	Reason string

	// Grave says that nothing else of what is made for a box stands in its way, so that
	// the runtime is not to be used.
	Grave bool
}

const maskedRaces = "races of containers that share mounts for what is masked; boxes share none"

// holes are those that are publicly known, the latest first of each. Distributions mend
// some without changing the version.
var holes = []Hole{
	{Runc, "CVE-2026-41579", []Version{{1, 3, 6}, {1, 4, 3}, {1, 5, 0}}, "an image whose /dev is a link", false},
	{Runc, "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881", []Version{{1, 2, 8}, {1, 3, 3}, {1, 4, 0}}, maskedRaces, false},
	{Runc, "CVE-2024-21626", []Version{{1, 1, 12}}, "a working directory that leads out by a descriptor left open", true},
	{Crun, "CVE-2026-47766", []Version{{1, 28, 0}}, "an image whose /dev is a link", false},
	{Crun, "CVE-2022-27650", []Version{{1, 4, 4}}, "capabilities that are inherited", true},
	{Youki, "the kin of CVE-2025-31133", []Version{{0, 5, 7}}, maskedRaces, false},
}

// in reports whether a runtime has the hole, by its version.
func (h Hole) in(r Runtime) bool {
	if h.Family != r.Family {
		return false
	}
	for i, mended := range h.Mended {
		sameLine := r.Version[0] == mended[0] && r.Version[1] == mended[1]
		if sameLine || i == len(h.Mended)-1 || r.Version.before(mended) {
			return r.Version.before(mended)
		}
	}
	return false
}

// String is a sentence on the hole for who runs it.
func (h Hole) String() string {
	mended := make([]string, len(h.Mended))
	for i, v := range h.Mended {
		mended[i] = v.String()
	}
	return fmt.Sprintf("By its version this %s has %s (%s), mended in %s. Prefer a newer one, unless your distribution has mended it.",
		h.Family, h.Name, h.Reason, strings.Join(mended, ", "))
}

// Holes returns the holes that a runtime has, by its version.
func (r Runtime) Holes() []Hole {
	var open []Hole
	for _, h := range holes {
		if h.in(r) {
			open = append(open, h)
		}
	}
	return open
}
