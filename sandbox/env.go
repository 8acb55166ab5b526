package sandbox

import (
	"path"
	"slices"
	"strings"
)

// DefaultPath is the PATH of boxes for which nobody has another in mind.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// MergeEnv returns the variables of both lists, each once: those of over win.
func MergeEnv(base, over []string) []string {
	set := make(map[string]bool)
	for _, v := range over {
		name, _, _ := strings.Cut(v, "=")
		set[name] = true
	}
	var all []string
	for _, v := range base {
		if name, _, _ := strings.Cut(v, "="); !set[name] {
			all = append(all, v)
		}
	}
	return append(all, over...)
}

// EnvIn returns the environment in a box whose image has variables of its own: the Spec's
// win. But a PATH of the image comes before [DefaultPath], whose programs are still found.
func (s Spec) EnvIn(image []string) []string {
	all := MergeEnv(image, s.Env)
	at := slices.Index(all, "PATH="+DefaultPath)
	for _, v := range image {
		if dirs, ok := strings.CutPrefix(v, "PATH="); ok && at >= 0 {
			all[at] = "PATH=" + joinPaths(dirs, DefaultPath)
		}
	}
	return all
}

// joinPaths joins lists of directories, each directory once. Those that are not absolute
// are left out: which they are would be up to what is in the work folder.
func joinPaths(lists ...string) string {
	var dirs []string
	for _, dir := range strings.Split(strings.Join(lists, ":"), ":") {
		if path.IsAbs(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, ":")
}
