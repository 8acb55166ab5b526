package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// An npmProject is a folder beside the tests with programs for Node, in the versions that
// its package-lock.json pins.
type npmProject struct {
	what    string // the programs are, for who reads why they are missing
	install func() (dir string, err error)
}

// newNPMProject installs what is in folder when it is first wanted, once, into a directory
// that is removed with the binary.
func newNPMProject(folder, what string) npmProject {
	return npmProject{what, sync.OnceValues(func() (dir string, err error) {
		dir = filepath.Join(scratch, folder)
		if err := os.CopyFS(dir, os.DirFS(folder)); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", errors.New("npm ci: " + err.Error() + "\n" + string(out))
		}
		return dir, nil
	})}
}

// need returns the directory of the installed project.
func (p npmProject) need(t *testing.T) (dir string) {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "%s needs %s: %v", p.what, tool, err)
		}
	}
	dir, err := p.install()
	if err != nil {
		missing(t, "%s cannot be installed: %v", p.what, err)
	}
	return dir
}
