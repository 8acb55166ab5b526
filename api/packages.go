package api

import "strings"

// Packages are installed into a cloud environment's boxes, per package manager, each
// in the manager's own words, with a version or without.
type Packages struct {
	Type  string   `json:"type,omitempty"` // "packages"
	Apt   []string `json:"apt"`
	Cargo []string `json:"cargo"`
	Gem   []string `json:"gem"`
	Go    []string `json:"go"`
	NPM   []string `json:"npm"`
	Pip   []string `json:"pip"`
}

// UnmarshalJSON takes lists that are left out, or null, as empty.
func (p *Packages) UnmarshalJSON(data []byte) error {
	var u PackagesUpdate
	if err := DecodeStrict(data, &u); err != nil {
		return err
	}
	*p = *u.apply(nil, false)
	return nil
}

// A PackageManager is one of those that [Packages] are for.
type PackageManager string

// The package managers, in the order in which they are used.
const (
	Apt   PackageManager = "apt"
	Cargo PackageManager = "cargo"
	Gem   PackageManager = "gem"
	Go    PackageManager = "go"
	NPM   PackageManager = "npm"
	Pip   PackageManager = "pip"
)

// PackageManagers are all of them, in that order.
var PackageManagers = []PackageManager{Apt, Cargo, Gem, Go, NPM, Pip}

// Of returns the list of a manager, to be changed in place.
func (p *Packages) Of(m PackageManager) *[]string {
	return map[PackageManager]*[]string{Apt: &p.Apt, Cargo: &p.Cargo, Gem: &p.Gem, Go: &p.Go, NPM: &p.NPM, Pip: &p.Pip}[m]
}

// Empty reports whether there is nothing to install.
func (p *Packages) Empty() bool {
	for _, m := range PackageManagers {
		if len(*p.Of(m)) > 0 {
			return false
		}
	}
	return true
}

// The bounds of packages: how many of one manager, and the length of one, in bytes.
const (
	PackagesMax    = 200
	packageNameMax = 256
)

func (p *Packages) resolve() error {
	if p.Type != "" && p.Type != "packages" {
		return Invalid("type: must be \"packages\"")
	}
	p.Type = "packages"
	for _, m := range PackageManagers {
		list := p.Of(m)
		if *list == nil {
			*list = []string{}
		}
		if len(*list) > PackagesMax {
			return Invalid("%s: at most %d packages, got %d", m, PackagesMax, len(*list))
		}
		for i, name := range *list {
			if err := checkPackage(name); err != nil {
				return Invalid("%s.%d: %s", m, i, err)
			}
		}
	}
	return nil
}

// checkPackage refuses what a package manager would take for something else than the
// name of a package in its index: an option, several of them, a path.
func checkPackage(name string) error {
	if name == "" || len(name) > packageNameMax {
		return Invalid("must be 1 to %d bytes", packageNameMax)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Invalid("%.100q: a package is one word of printable ASCII", name)
	}
	if strings.ContainsRune("-./", rune(name[0])) {
		return Invalid("%.100q: the name of a package does not begin so", name)
	}
	return nil
}

// A PackagesUpdate changes [Packages]. Lists that are left out keep their value; null
// is the empty list.
type PackagesUpdate struct {
	Type  string        `json:"type,omitempty"`
	Apt   Opt[[]string] `json:"apt,omitzero"`
	Cargo Opt[[]string] `json:"cargo,omitzero"`
	Gem   Opt[[]string] `json:"gem,omitzero"`
	Go    Opt[[]string] `json:"go,omitzero"`
	NPM   Opt[[]string] `json:"npm,omitzero"`
	Pip   Opt[[]string] `json:"pip,omitzero"`
}

// apply returns old, which may be nil, with the update.
func (u PackagesUpdate) apply(old *Packages, null bool) *Packages {
	var next Packages
	if null {
		return &next
	}
	if old != nil {
		next = *old
	}
	if u.Type != "" {
		next.Type = u.Type
	}
	lists := map[PackageManager]Opt[[]string]{Apt: u.Apt, Cargo: u.Cargo, Gem: u.Gem, Go: u.Go, NPM: u.NPM, Pip: u.Pip}
	for m, list := range lists {
		if list.Set {
			*next.Of(m) = list.Value
		}
	}
	return &next
}
