package cloud

import (
	"fmt"
	"strings"

	"github.com/bailey-platform/bailey/api"
	"github.com/bailey-platform/bailey/sandbox"
)

// Packages are installed in each new box before its first call, by the user that runs
// the tools and under the environment's network rules. There is no root in a box, so
// each manager installs into a place of its own below prefix, and the environment of the
// box says where that is. Packages of apt are unpacked there with what they depend on;
// their scripts are not run.

// prefix is where packages go. It goes with the box.
const prefix = sandbox.HomePath + "/.packages"

// A manager is how packages of one kind are installed.
type manager struct {
	of      api.PackageManager
	needs   string // the program, to say what an image lacks
	install string // bash; the packages are "$@"
}

// managers are in the order in which they are used.
var managers = []manager{
	{api.Apt, "apt-get", `
		mkdir -p "$P/apt/lists/partial" "$P/apt/cache/archives/partial" "$P/root"
		apt=(apt-get -q -y -o Dir::State::Lists="$P/apt/lists" -o Dir::Cache="$P/apt/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Acquire::Retries=2)
		"${apt[@]}" update
		"${apt[@]}" install --download-only --no-install-recommends -- "$@"
		for deb in "$P"/apt/cache/archives/*.deb; do
			if [ -e "$deb" ]; then dpkg-deb -x "$deb" "$P/root"; fi
		done
		rm -rf "$P/apt"`},
	{api.Cargo, "cargo", `cargo install --root "$P/cargo" -- "$@"`},
	{api.Gem, "gem", `
		for gem in "$@"; do
			case "$gem" in
			*:*) gem install --no-document --install-dir "$P/gem" "${gem%%:*}" -v "${gem#*:}" ;;
			*) gem install --no-document --install-dir "$P/gem" "$gem" ;;
			esac
		done`},
	{api.Go, "go", `
		for pkg in "$@"; do
			case "$pkg" in *@*) ;; *) pkg="$pkg@latest" ;; esac
			GOBIN="$P/go/bin" GOPATH="$P/go" GOCACHE="$P/go/cache" go install "$pkg"
		done`},
	{api.NPM, "npm", `npm install --global --no-audit --no-fund --prefix "$P/npm" --cache "$P/npm/cache" -- "$@"`},
	{api.Pip, "python3", `PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --user --break-system-packages --no-cache-dir --no-input -- "$@"`},
}

// packagesEnv is the environment in which a box finds what was installed.
func packagesEnv(p *api.Packages) map[string]string {
	if p.Empty() {
		return nil
	}
	root := prefix + "/root"
	return map[string]string{
		"PATH": strings.Join([]string{
			prefix + "/pip/bin", prefix + "/npm/bin", prefix + "/go/bin", prefix + "/gem/bin", prefix + "/cargo/bin",
			root + "/usr/local/bin", root + "/usr/bin", root + "/bin", root + "/usr/sbin", root + "/sbin",
			"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
		}, ":"),
		"LD_LIBRARY_PATH": strings.Join([]string{root + "/usr/lib/x86_64-linux-gnu", root + "/usr/lib/aarch64-linux-gnu", root + "/usr/lib", root + "/lib"}, ":"),
		"PYTHONUSERBASE":  prefix + "/pip",
		"NODE_PATH":       prefix + "/npm/lib/node_modules",
		"GEM_PATH":        prefix + "/gem",
	}
}

// packagesSetup is the script that installs them; "" if there are none.
func packagesSetup(p *api.Packages) string {
	if p.Empty() {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "P=%s\nmkdir -p \"$P\"\n", prefix)
	for _, m := range managers {
		names := *p.Of(m.of)
		if len(names) == 0 {
			continue
		}
		fmt.Fprintf(&out, "command -v %s >/dev/null || { echo 'packages.%s: there is no %s in the image of this environment'; exit 1; }\n", m.needs, m.of, m.needs)
		quoted := make([]string, len(names))
		for i, name := range names {
			quoted[i] = quote(name)
		}
		fmt.Fprintf(&out, "set -- %s\n%s\n", strings.Join(quoted, " "), strings.ReplaceAll(strings.TrimSpace(m.install), "\n\t\t", "\n"))
		fmt.Fprintf(&out, "echo 'packages.%s: installed'\n", m.of)
	}
	return out.String()
}

// quote makes text one word for bash.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
