package egress

import (
	"maps"
	"slices"
)

// presets are the hosts of well-known services, as their own documentation names them.
// All are reached by http on port 80 and tls on 443.
var presets = map[string][]string{
	"alpine":    {"dl-cdn.alpinelinux.org", "dl-2.alpinelinux.org", "dl-3.alpinelinux.org", "dl-4.alpinelinux.org", "dl-5.alpinelinux.org"},
	"conda":     {"conda.anaconda.org", "repo.anaconda.com"},
	"crates":    {"crates.io", "index.crates.io", "static.crates.io"},
	"debian":    {"deb.debian.org", "security.debian.org", "cdn-fastly.deb.debian.org"},
	"fedora":    {"mirrors.fedoraproject.org", "dl.fedoraproject.org"},
	"github":    {"github.com", "codeload.github.com", "raw.githubusercontent.com", "objects.githubusercontent.com", "release-assets.githubusercontent.com"},
	"go":        {"proxy.golang.org", "sum.golang.org"},
	"maven":     {"repo.maven.apache.org", "repo1.maven.org", "plugins.gradle.org"},
	"npm":       {"registry.npmjs.org", "registry.yarnpkg.com"},
	"packagist": {"packagist.org", "repo.packagist.org"},
	"pypi":      {"pypi.org", "files.pythonhosted.org"},
	"rubygems":  {"rubygems.org", "index.rubygems.org"},
	"rust":      {"static.rust-lang.org"},
	"ubuntu":    {"archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com", "*.archive.ubuntu.com"},
}

// sets are presets made of others.
var sets = map[string][]string{
	// What an environment's packages can be installed with: apt, cargo, gem, go, npm, pip.
	"package-managers": {"alpine", "crates", "debian", "go", "npm", "pypi", "rubygems", "ubuntu"},
}

// Presets are the names that [Policy.Presets] may have, sorted.
func Presets() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for _, names := range []map[string][]string{presets, sets} {
			for name := range maps.Keys(names) {
				if !yield(name) {
					return
				}
			}
		}
	})
}

// preset is the rules of one preset, one for each service.
func preset(name string) ([]Rule, bool) {
	members, ok := sets[name]
	if !ok {
		members = []string{name}
	}
	var rules []Rule
	for _, member := range members {
		hosts, ok := presets[member]
		if !ok {
			return nil, false
		}
		rules = append(rules, Rule{Name: "preset " + member, Hosts: hosts})
	}
	return rules, true
}
