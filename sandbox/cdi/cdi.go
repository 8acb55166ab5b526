// Package cdi says what the devices are that a box gets by name: which files of /dev,
// which mounts, which variables. The names are those of the Container Device Interface
// (https://github.com/cncf-tags/container-device-interface), and what they mean is in
// files that the makers' tools write, such as `nvidia-ctk cdi generate`.
//
// The package opens no device, and must not know how a box gets one. Start reading at
// [Resolve].
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	files "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Dirs are the directories that the interface says the descriptions of a host's devices
// are in. Where two describe the same device, the one in the last counts.
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// Devices is what a box must have to use some devices. The zero value is what it must
// have to use none.
type Devices struct {
	Nodes  []Node
	Mounts []Mount
	Env    []string // "KEY=value"
	Groups []uint32 // further groups of the command, by number

	// Hooks are programs of the host that a runtime is to run while it makes the box,
	// with the rights it has itself. A backend that is no OCI runtime runs none, and
	// refuses the device if it cannot be used without.
	Hooks []Hook

	// GPUs are those of NVIDIA among the devices, by what follows "nvidia.com/gpu=":
	// a number, a UUID, or "all". For backends with a way of their own to offer them,
	// as gVisor and Docker have.
	GPUs []string
}

// A Node is a file that stands for a device.
type Node struct {
	HostPath string
	Path     string // in the box; clean and absolute
	Type     string // "c" of characters, "b" of blocks, "p" a pipe
	Major    int64
	Minor    int64
	Access   string // of "rwm": what the box may do with it
}

// A Mount is a file or directory of the host that the box sees.
type Mount struct {
	HostPath string
	Path     string // in the box; clean and absolute
	Options  []string
}

// A Hook is one of the OCI runtime specification.
type Hook struct {
	Stage string // "createContainer" and its like
	Path  string
	Args  []string
	Env   []string
}

// Resolve returns what a box must have to use the devices named ("vendor.com/class=name"),
// as the files in the directories say, [Dirs] if there are none. An error names what
// there is.
func Resolve(names []string, dirs ...string) (Devices, error) {
	var d Devices
	if len(names) == 0 {
		return d, nil
	}
	known, err := read(dirs)
	if err != nil {
		return d, err
	}
	kinds := make(map[string]bool) // those of which the part that all devices share is there
	for _, name := range names {
		vendor, class, device := parser.ParseDevice(name)
		if vendor == "" || class == "" || device == "" {
			return Devices{}, fmt.Errorf("device %q: want a name like vendor.com/class=name", name)
		}
		found := known.GetDevice(name)
		if found == nil {
			return Devices{}, fmt.Errorf("device %q: %w", name, missing(known))
		}
		if kind := found.GetSpec().GetPath(); !kinds[kind] {
			kinds[kind] = true
			if err := d.add(files.ContainerEdits{ContainerEdits: &found.GetSpec().ContainerEdits}); err != nil {
				return Devices{}, fmt.Errorf("device %q, in %s: %w", name, kind, err)
			}
		}
		if err := d.add(files.ContainerEdits{ContainerEdits: &found.ContainerEdits}); err != nil {
			return Devices{}, fmt.Errorf("device %q, in %s: %w", name, found.GetSpec().GetPath(), err)
		}
		if vendor == "nvidia.com" && class == "gpu" {
			d.GPUs = append(d.GPUs, device)
		}
	}
	return d, nil
}

// List returns the names of the devices that the files in the directories describe,
// [Dirs] if there are none.
func List(dirs ...string) ([]string, error) {
	known, err := read(dirs)
	if err != nil {
		return nil, err
	}
	return known.ListDevices(), nil
}

func read(dirs []string) (known *files.Cache, err error) {
	// The library does not survive every description, such as one of a class with a
	// name of one letter.
	defer func() {
		if p := recover(); p != nil {
			known, err = nil, fmt.Errorf("read the descriptions of devices in %s: one of them is broken: %v", strings.Join(dirs, " and "), p)
		}
	}()
	if len(dirs) == 0 {
		dirs = Dirs
	}
	known, err = files.NewCache(files.WithSpecDirs(dirs...), files.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read the descriptions of devices: %w", err)
	}
	return known, nil
}

// missing says what there is instead of a device that there is not.
func missing(known *files.Cache) error {
	text := "there is none of this name in " + strings.Join(known.GetSpecDirectories(), " or ")
	if there := known.ListDevices(); len(there) > 0 {
		text += "; there are " + strings.Join(there, ", ")
	} else {
		text += ", and no other either; the makers' tools describe them there (for NVIDIA: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml)"
	}
	var errs []error
	broken := known.GetErrors()
	for _, name := range sorted(broken) {
		errs = append(errs, fmt.Errorf("%s cannot be used: %w", name, errors.Join(broken[name]...)))
	}
	return errors.Join(append([]error{errors.New(text)}, errs...)...)
}

func sorted(m map[string][]error) []string {
	var keys []string
	for key, errs := range m {
		// A directory that is not there holds no devices, which is no news.
		if !slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, fs.ErrNotExist) }) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// add adds what a description has a runtime change.
func (d *Devices) add(edits files.ContainerEdits) error {
	if edits.IntelRdt != nil {
		return errors.New("it asks for a share of the processor's cache, which boxes have not")
	}
	for _, n := range edits.DeviceNodes {
		node := Node{HostPath: n.HostPath, Path: n.Path, Type: n.Type, Major: n.Major, Minor: n.Minor, Access: n.Permissions}
		if node.HostPath == "" {
			node.HostPath = node.Path
		}
		if node.Access == "" {
			node.Access = "rwm"
		}
		if err := node.complete(); err != nil {
			return err
		}
		if err := addOnce(&d.Nodes, node, func(o Node) bool { return o.Path == node.Path }, node.Path); err != nil {
			return err
		}
	}
	for _, m := range edits.Mounts {
		mount := Mount{m.HostPath, m.ContainerPath, m.Options}
		if err := errors.Join(absolute(mount.HostPath), absolute(mount.Path)); err != nil {
			return err
		}
		if err := addOnce(&d.Mounts, mount, func(o Mount) bool { return o.Path == mount.Path }, mount.Path); err != nil {
			return err
		}
	}
	for _, v := range edits.Env {
		key, _, _ := strings.Cut(v, "=")
		if err := addOnce(&d.Env, v, func(o string) bool { return strings.HasPrefix(o, key+"=") }, key); err != nil {
			return err
		}
	}
	for _, h := range edits.Hooks {
		d.Hooks = append(d.Hooks, Hook{h.HookName, h.Path, h.Args, h.Env})
	}
	for _, g := range edits.AdditionalGIDs {
		if !slices.Contains(d.Groups, g) {
			d.Groups = append(d.Groups, g)
		}
	}
	return nil
}

// addOnce adds to a list what is not in it. Devices may share something, but not
// disagree on it.
func addOnce[T any](list *[]T, v T, same func(T) bool, name string) error {
	i := slices.IndexFunc(*list, same)
	switch {
	case i < 0:
		*list = append(*list, v)
	case !reflect.DeepEqual((*list)[i], v):
		return fmt.Errorf("%s is one thing to one device and another to another: %v and %v", name, (*list)[i], v)
	}
	return nil
}

// complete fills in what a description leaves to the device itself.
func (n *Node) complete() error {
	if err := errors.Join(absolute(n.HostPath), absolute(n.Path)); err != nil {
		return err
	}
	if n.Path != "/dev" && !strings.HasPrefix(n.Path, "/dev/") {
		return fmt.Errorf("%s: a device that is not in /dev", n.Path)
	}
	var stat unix.Stat_t
	if err := unix.Stat(n.HostPath, &stat); err != nil {
		return &os.PathError{Op: "find the device", Path: n.HostPath, Err: err}
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[stat.Mode&unix.S_IFMT]
	major, minor := int64(unix.Major(uint64(stat.Rdev))), int64(unix.Minor(uint64(stat.Rdev)))
	switch {
	case kind == "":
		return fmt.Errorf("%s is no device", n.HostPath)
	case n.Type != "" && n.Type != kind && !(n.Type == "u" && kind == "c"),
		kind != "p" && (n.Major != 0 || n.Minor != 0) && (n.Major != major || n.Minor != minor):
		return fmt.Errorf("%s is the device %s %d:%d, and its description says %s %d:%d; make it anew", n.HostPath, kind, major, minor, n.Type, n.Major, n.Minor)
	}
	n.Type, n.Major, n.Minor = kind, major, minor
	return nil
}

func absolute(name string) error {
	if !path.IsAbs(name) || filepath.Clean(name) != name || name == "/" {
		return fmt.Errorf("%q: want an absolute path without dots", name)
	}
	return nil
}
