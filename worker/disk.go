package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// dataDir is the worker's own directory:
//
//	lock                 held while a worker uses the directory
//	audit.jsonl…         the audit record (package audit), unless it is kept elsewhere
//	items/<item>.json    one file a claimed work item
//	calls/<session>.jsonl  one journal a session
//	work/<session>/      what the session's box sees as its work folder
//	work/.pool-…/        the same of a box that is nobody's yet
//	work/.gone-…/        one that is being removed
//
// The work folders may be in a directory elsewhere, so that what boxes write cannot
// fill the disk that the rest is on. Nothing here is a secret: tokens are not written
// down.
type dataDir struct {
	path, folders string
	locks         []*os.File

	// step is called before each durable write with the write's name; an error
	// keeps the write from happening. Tests make it fail as a crash would.
	step func(name string) error
}

// errInUse is returned by openDataDir for a directory that another worker uses.
var errInUse = errors.New("another worker uses this directory")

// openDataDir opens the directory at path, with the work folders in the one at folders.
func openDataDir(path, folders string, step func(string) error) (_ *dataDir, err error) {
	d := &dataDir{path: path, folders: folders, step: step}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for _, dir := range []string{path, filepath.Join(path, "items"), filepath.Join(path, "calls"), folders} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	for _, path := range []string{filepath.Join(path, "lock"), filepath.Join(folders, ".lock")} {
		lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		d.locks = append(d.locks, lock)
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			return nil, fmt.Errorf("%w: %s", errInUse, filepath.Dir(path))
		}
	}
	return d, nil
}

func (d *dataDir) close() {
	for _, lock := range d.locks {
		_ = lock.Close()
	}
}

func (d *dataDir) audit() string { return filepath.Join(d.path, "audit.jsonl") }

var plainName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,100}$`)

// fileName turns a foreign id into a name that is safe as a file's. An id that
// is no plain name becomes its hash.
func fileName(id string) string {
	if plainName.MatchString(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "~" + hex.EncodeToString(sum[:])
}

// item is a claimed work item as it is written down, so that a restarted worker
// can carry on with it.
type item struct {
	ID      string `json:"work_id"`
	Env     string `json:"environment_id"`
	Session string `json:"session_id"`

	// LastHeartbeat is the plane's latest answer in the heartbeat chain; empty
	// before the first. Beaten says that there was one, whatever it was.
	LastHeartbeat string `json:"last_heartbeat"`
	Beaten        bool   `json:"beaten"`
}

func (d *dataDir) itemPath(id string) string {
	return filepath.Join(d.path, "items", fileName(id)+".json")
}

// saveItem writes an item down. durable waits until a power cut would not undo
// it; without, only a crash of the worker would not.
func (d *dataDir) saveItem(it item, durable bool) error {
	if err := d.step("item"); err != nil {
		return err
	}
	b, err := json.Marshal(it)
	if err != nil {
		return err
	}
	if err := replaceFile(d.itemPath(it.ID), append(b, '\n'), durable); err != nil {
		return fmt.Errorf("write item journal: %w", err)
	}
	return nil
}

func (d *dataDir) dropItem(id string) error {
	if err := d.step("item drop"); err != nil {
		return err
	}
	err := os.Remove(d.itemPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// items returns what was claimed and neither ended nor lost, as far as known.
// Files that make no sense, which a power cut may leave, are removed: the plane
// offers their items again.
func (d *dataDir) items(env string) ([]item, error) {
	dir := filepath.Join(d.path, "items")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read item journal: %w", err)
	}
	var items []item
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read item journal: %w", err)
		}
		var it item
		if !strings.HasSuffix(e.Name(), ".json") || json.Unmarshal(b, &it) != nil || it.ID == "" || it.Session == "" {
			_ = os.Remove(path)
			continue
		}
		if it.Env == env {
			items = append(items, it)
		}
	}
	slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.ID, b.ID) })
	return items, nil
}

// replaceFile puts b in the place of a file, in one step.
func replaceFile(path string, b []byte, durable bool) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil && durable {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
