package ns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

// unavailable explains why boxes cannot be made here.
func (d *Driver) unavailable(err error) error {
	if already, ok := errors.AsType[*sandbox.Unavailable](err); ok {
		return already
	}
	_, container := os.Stat("/.dockerenv")
	return &sandbox.Unavailable{Backend: Name, Cause: err.Error(), Remedy: remedies(err, "/proc/sys", d.root, container == nil)}
}

// remedies says what to do about an error, by what it says and by what the kernel's
// settings under dir are.
func remedies(err error, dir string, root, container bool) []string {
	setting := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(data))
	}
	var list []string
	if setting("user/max_user_namespaces") == "0" {
		list = append(list, "sysctl user.max_user_namespaces=10000")
	}
	if !root && setting("kernel/unprivileged_userns_clone") == "0" {
		list = append(list, "sysctl kernel.unprivileged_userns_clone=1")
	}
	if !root && setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
		list = append(list, "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
			"an AppArmor profile for this binary, and for the launcher in its data directory, that allows userns")
	}
	about := func(words string) bool { return strings.Contains(err.Error(), words) }
	switch {
	case errors.Is(err, unix.ENOSYS), about(unix.ENOSYS.Error()):
		list = append(list, "use Linux 5.19 or newer")
	case about("restrict the mount of"):
		list = append(list, "use Linux 5.19 or newer", "keep images and work folders on a file system whose owners can be mapped, such as ext4, xfs, btrfs or tmpfs")
	case about("scratch space over"):
		list = append(list, "use Linux 5.19 or newer, with overlayfs (modprobe overlay)")
	case about("mount /proc") && container:
		list = append(list, "give the container that this is --security-opt systempaths=unconfined")
	case about("nf_tables"):
		list = append(list, "modprobe -a nf_tables nft_redir nft_ct nft_reject_inet")
	}
	if container && (errors.Is(err, unix.EPERM) || about(unix.EPERM.Error())) {
		list = append(list, "give the container that this is --security-opt seccomp=unconfined and --cap-add SYS_ADMIN")
	}
	if len(list) == 0 && !root {
		list = append(list, "run as root")
	}
	return list
}
