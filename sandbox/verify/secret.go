package verify

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

var secretChecks = []check{
	{
		id:    "secret/environment",
		tried: "find a key or token in the environment of a box",
		probe: func(p *prober) outcome {
			for _, v := range os.Environ() {
				name, value, _ := strings.Cut(v, "=")
				upper := strings.ToUpper(name)
				if bytes.Contains([]byte(value), p.secret()) || strings.HasPrefix(upper, "ANTHROPIC_") || strings.HasPrefix(upper, "BAILEY_") && !strings.HasPrefix(upper, "BAILEY_BOX") ||
					strings.HasPrefix(upper, "AWS_SECRET") || strings.HasPrefix(value, "sk-ant-") {
					return broken("the variable %s is there", name)
				}
			}
			return held("%d variables, none of them the worker's", len(os.Environ()))
		},
	},
	{
		id:    "secret/files",
		tried: "search every file that a box can read, outside of its programs, for a secret of the host",
		probe: func(p *prober) outcome { return p.search() },
	},
	{
		id:      "secret/credential",
		tried:   "search a box with a credential, its environment, its files and its processes' memory, for the credential's value",
		network: true,
		applies: noRules,
		probe: func(p *prober) outcome {
			return p.searchFor([]byte(p.facts.Lab.SecretHead + p.facts.Lab.SecretTail))
		},
	},
}

// Bounds of a search.
const (
	searchFiles = 50_000
	searchBytes = 256 << 20
	searchFile  = 4 << 20
)

func (p *prober) search() outcome { return p.searchFor(p.secret()) }

// searchFor looks for a text in all files that can be read, but for those of installed
// programs, which boxes share, and in the environment.
func (p *prober) searchFor(secret []byte) outcome {
	files, total := 0, int64(0)
	var where string
	for _, v := range os.Environ() {
		if bytes.Contains([]byte(v), secret) {
			name, _, _ := strings.Cut(v, "=")
			return broken("it is in the variable %s", name)
		}
	}
	_ = filepath.WalkDir("/", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be read holds nothing for a box
		}
		switch {
		case entry.IsDir():
			switch name {
			case "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sys", "/proc/sys", "/proc/bus":
				return fs.SkipDir
			}
			return nil
		case entry.Type()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket|fs.ModeSymlink) != 0:
			return nil
		case files >= searchFiles || total >= searchBytes:
			return fs.SkipAll
		}
		base := filepath.Base(name)
		if strings.HasPrefix(name, "/proc/") && base != "environ" && base != "cmdline" && base != "mountinfo" && base != "cgroup" {
			return nil
		}
		files++
		data, err := readSome(name, searchFile)
		total += int64(len(data))
		if err == nil && bytes.Contains(data, secret) {
			where = name
			return fs.SkipAll
		}
		return nil
	})
	if where != "" {
		return broken("it is in %s", where)
	}
	return held("%d files, %d KiB: not there", files, total>>10)
}
