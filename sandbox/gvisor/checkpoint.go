package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bailey-platform/bailey/sandbox"
)

// A checkpoint is a directory with gVisor's own files and this one of ours, written
// last, with what has to be the same where it is restored. gVisor compares the rest.
const manifestFile = "box.json"

type manifest struct {
	Engine string `json:"engine"` // its version
	Root   bool   `json:"root"`   // made by a worker that was root
}

// Checkpoint implements [sandbox.Checkpointer]. The checkpoint holds all the memory of
// the box's programs, and so may hold secrets of theirs: only we can read it.
//
// What the boxes that are restored from it share: all that a program had in memory,
// its own random generators included, such as those of Python, OpenSSL or a shell's
// $RANDOM, which go on alike in each until they are seeded anew. What the kernel gives
// out differs from the first byte: /dev/urandom, getrandom(2) and the like come from
// the host.
func (b *box) Checkpoint(ctx context.Context, dir string) error {
	b.still.Lock()
	defer b.still.Unlock()
	if b.frozen.Load() {
		if err := b.thaw(ctx); err != nil {
			return err
		}
		defer func() {
			if err := b.freeze(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, errEnded) {
				b.log.Error("a box that was frozen runs on after its checkpoint", "error", err)
			}
		}()
	}
	if _, _, err := b.living(ctx); err != nil {
		return err
	}
	if err := b.checkpoint(ctx, dir); err != nil {
		return fmt.Errorf("checkpoint box %s: %w", b.spec.ID, err)
	}
	return nil
}

func (b *box) checkpoint(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	switch entries, err := os.ReadDir(dir); {
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty", dir)
	}
	var files []*os.File
	defer func() {
		for _, file := range files {
			file.Close()
		}
	}()
	for _, name := range []string{"checkpoint.img", "pages_meta.img", "pages.img"} {
		file, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	// The names of these are gVisor's.
	if err := b.tell(ctx, tellCheckpoint, map[string]any{
		"metadata":        map[string]string{"compression": "none"},
		"have_pages_file": true,
		"Resume":          true,
	}, files...); err != nil {
		return err
	}
	data, err := json.Marshal(manifest{Engine: b.driver.version(), Root: b.driver.root})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), data, 0o600)
}

// Restore implements [sandbox.Restorer].
func (d *Driver) Restore(ctx context.Context, spec sandbox.Spec, dir string) (sandbox.Box, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	var m manifest
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("restore box %s: %s is no checkpoint, or not a whole one: %w", spec.ID, dir, err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("restore box %s: %s: %w", spec.ID, manifestFile, err)
	}
	if now := (manifest{Engine: d.version(), Root: d.root}); m != now {
		return nil, fmt.Errorf("restore box %s: the checkpoint was made by %+v and this is %+v; start a new box instead", spec.ID, m, now)
	}
	return d.open(ctx, spec, []string{"restore", "--image-path=" + dir, "--bundle=."})
}
