package ns

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRemedies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings        map[string]string
		err             string
		root, container bool
		want            []string // the beginnings of some
	}{
		"none allowed":     {map[string]string{"user/max_user_namespaces": "0"}, "x", true, false, []string{"sysctl user.max_user_namespaces"}},
		"Debian":           {map[string]string{"kernel/unprivileged_userns_clone": "0"}, "x", false, false, []string{"sysctl kernel.unprivileged_userns_clone=1"}},
		"Ubuntu":           {map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "x", false, false, []string{"sysctl kernel.apparmor_restrict", "an AppArmor profile"}},
		"Ubuntu, root":     {map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "x", true, false, nil},
		"an old kernel":    {nil, "function not implemented", true, false, []string{"use Linux 5.19"}},
		"no owners mapped": {nil, "restrict the mount of /data: invalid argument", true, false, []string{"use Linux 5.19", "keep images and work folders"}},
		"no overlay":       {nil, "lay scratch space over the image: no such device", true, false, []string{"use Linux 5.19"}},
		"no nftables":      {nil, "redirect to the exits: x; the kernel needs nf_tables", true, false, []string{"modprobe"}},
		"in a container":   {nil, "mount /proc: operation not permitted", true, true, []string{"give the container that this is --security-opt systempaths", "give the container that this is --security-opt seccomp"}},
		"nothing known":    {nil, "x", false, false, []string{"run as root"}},
	} {
		dir := t.TempDir()
		for file, value := range c.settings {
			file = filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got := remedies(errors.New(c.err), dir, c.root, c.container)
		for _, want := range c.want {
			if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("%s: no %q in %q", name, want, got)
			}
		}
		if len(got) < len(c.want) || c.want == nil && len(got) > 0 {
			t.Errorf("%s: %q", name, got)
		}
	}
}
