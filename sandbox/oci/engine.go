package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/bailey-platform/bailey/sandbox"
)

// A family is runtimes that are used in the same way.
type family string

// The families. Which one an executable is of is what it says of itself: the name of
// the file says nothing.
const (
	runc  family = "runc"
	crun  family = "crun"
	youki family = "youki"
	runsc family = "runsc"
	kata  family = "kata-runtime"
	other family = "" // not known to us, and used as the specification has it
)

// An engine is a runtime, and what is known of it.
type engine struct {
	path    string
	family  family
	version version
	words   string   // how it gives its version
	flags   []string // ahead of its command
}

// identify asks a runtime what it is.
func identify(ctx context.Context, path string) (*engine, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("runtime %q: want the absolute path of an executable", path)
	}
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("runtime %s: want an executable (%w)", path, errors.Join(err))
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	e := &engine{path: path}
	e.words, _, _ = strings.Cut(strings.ToValidUTF8(strings.TrimSpace(string(out)), "?"), "\n")
	e.family, e.version = parseVersion(e.words)
	switch e.family {
	case runc:
		// What it may not do to control groups is no error then.
		e.flags = []string{"--rootless=true"}
	case crun:
		e.flags = []string{"--cgroup-manager=disabled"}
	case runsc, kata:
		return nil, e.refuse()
	}
	return e, nil
}

// refuse says why a runtime that is no program of the host's kernel is not for us.
func (e *engine) refuse() error {
	u := &sandbox.Unavailable{Backend: Name}
	switch e.family {
	case runsc:
		u.Cause = fmt.Sprintf("%s is gVisor, which needs a network card, control groups and a life of its own", e.path)
		u.Remedy = []string{`use the backend "gvisor", which has it built in`,
			`use the backend "docker" with the runtime "runsc", if it must be this one`}
	case kata:
		u.Cause = fmt.Sprintf("%s (%s) cannot run a bundle: since its version 2, Kata is driven by containerd alone", e.path, e.words)
		u.Remedy = []string{`use the backend "docker" with the runtime "io.containerd.kata.v2"`}
	}
	return u
}

// A version is a runtime's: major, minor, patch.
type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) before(w version) bool {
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

// parseVersion reads the first line that a runtime gives as its version. What is not
// there is 0, and so old.
func parseVersion(line string) (family, version) {
	m := versionLine.FindStringSubmatch(line)
	if m == nil {
		name, _, _ := strings.Cut(line, " ")
		switch f := family(name); f {
		case runc, crun, youki, runsc, kata:
			return f, version{}
		}
		return other, version{}
	}
	var v version
	for i := range v {
		v[i], _ = strconv.Atoi(m[2+i]) // digits, or nothing
	}
	return family(m[1]), v
}

// A hole is a defect of a runtime that a box, or what its image holds, could use to
// leave it.
type hole struct {
	family family
	name   string
	// mended are the versions that are the first without it, one for each line of
	// releases; what comes after the last has it mended too.
	mended []version
	// hard says that a box could use it in the way we use the runtime; of the others
	// there is a reason why not.
	hard   bool
	reason string
}

// holes are those that are publicly known, the latest first. Distributions mend some
// without changing the version, which is why an operator may accept an old one.
var holes = []hole{
	{runc, "CVE-2026-41579", []version{{1, 3, 6}, {1, 4, 3}, {1, 5, 0}}, false,
		"an image's /dev being a link; such images are refused here"},
	{runc, "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881", []version{{1, 2, 8}, {1, 3, 3}, {1, 4, 0}}, false,
		"races of two containers that share mounts for the files that are masked; boxes share none, and have a user namespace of their own"},
	{runc, "CVE-2024-21626", []version{{1, 1, 12}}, true,
		"a working directory that leads out of the container by a descriptor that was left open"},
	{crun, "CVE-2026-47766", []version{{1, 28, 0}}, false,
		"an image's /dev being a link; such images are refused here"},
	{crun, "CVE-2022-27650", []version{{1, 4, 4}}, true,
		"capabilities that are inherited"},
	{youki, "the kin of CVE-2025-31133", []version{{0, 5, 7}}, false,
		"races of two containers that share mounts for the files that are masked; boxes share none, and have a user namespace of their own"},
}

// in reports whether a version of this runtime has the hole.
func (h hole) in(e *engine) bool {
	if h.family != e.family {
		return false
	}
	for i, mended := range h.mended {
		last := i == len(h.mended)-1
		sameLine := e.version[0] == mended[0] && e.version[1] == mended[1]
		if sameLine || last || e.version.before(mended) {
			return e.version.before(mended)
		}
	}
	return false
}

// judge returns what an operator should know of the runtime's age. It fails if that is
// a reason not to use it, which accepted makes no more than a warning.
func (e *engine) judge(accepted bool) (notes []string, err error) {
	if e.family == other {
		notes = append(notes, fmt.Sprintf("Nothing is known here of %q and its defects.", e.words))
	}
	for _, h := range holes {
		if !h.in(e) {
			continue
		}
		var mended []string
		for _, v := range h.mended {
			mended = append(mended, v.String())
		}
		since := fmt.Sprintf("mended in %s", strings.Join(mended, ", "))
		if h.hard && !accepted {
			return nil, &sandbox.Unavailable{
				Backend: Name,
				Cause:   fmt.Sprintf("%s %s is open to %s (%s), %s", e.family, e.version, h.name, h.reason, since),
				Remedy: []string{
					fmt.Sprintf("install %s %s or later", e.family, h.mended[len(h.mended)-1]),
					"if your distribution has mended it without a new version, say so with allow_old",
				},
			}
		}
		notes = append(notes, fmt.Sprintf("By its version %s %s has %s (%s), %s. Prefer a newer one, unless your distribution has mended it.",
			e.family, e.version, h.name, h.reason, since))
	}
	return notes, nil
}
