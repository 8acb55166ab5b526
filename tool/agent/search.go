package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

const (
	walkMax     = 50_000    // files looked at in one search
	foundMax    = 200       // paths that glob returns
	searchedMax = 8 << 20   // bytes of a file that grep looks into
	outputMax   = 100 << 10 // bytes that grep returns, or the shell
)

// What a search says when it finds nothing, and when it finds too much.
const (
	noMatches = "no matches"
	truncated = "[output truncated]"
)

// glob is the tool of that name.
func (p places) glob(ctx context.Context, call tool.Call) (string, error) {
	var in struct {
		Pattern text `json:"pattern"`
		Path    text `json:"path"`
	}
	if err := decode(call.Input, &in); err != nil {
		return "", fmt.Errorf("invalid glob input: %w", err)
	}
	pattern := string(in.Pattern)
	steps := strings.Split(pattern, "/")
	switch {
	case pattern == "":
		return "", errors.New("glob: pattern is required")
	case path.IsAbs(pattern):
		return "", errors.New("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)")
	case slices.Contains(steps, ".."):
		return "", fmt.Errorf("glob: pattern %q must not contain a %q segment", pattern, "..")
	}
	at, err := p.find(cmp.Or(string(in.Path), "."))
	if err != nil {
		return "", fmt.Errorf("glob: %w", err)
	}
	root := at.path
	type match struct {
		path    string
		changed time.Time
	}
	var found []match
	err = walk(ctx, root, func(name string, entry fs.DirEntry) (bool, error) {
		if name == root || !matches(steps, strings.Split(strings.TrimPrefix(name[len(root):], "/"), "/")) {
			return true, nil
		}
		m := match{path: name}
		if info, err := entry.Info(); err == nil {
			m.changed = info.ModTime()
		}
		found = append(found, m)
		return true, nil
	})
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return noMatches, nil
	}
	slices.SortStableFunc(found, func(a, b match) int { return b.changed.Compare(a.changed) })
	names := make([]string, min(len(found), foundMax))
	for i := range names {
		names[i] = found[i].path
	}
	return strings.Join(names, "\n"), nil
}

// walk visits what is below root, at most walkMax of it, following no link. It goes on,
// and into directories, as long as visit returns true.
func walk(ctx context.Context, root string, visit func(name string, entry fs.DirEntry) (bool, error)) error {
	visited := 0
	return filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil: // closed to us, or gone
			return nil
		case name == root && entry.IsDir():
			return nil
		case visited == walkMax:
			return filepath.SkipAll
		}
		visited++
		on, err := visit(name, entry)
		switch {
		case err != nil:
			return err
		case !on && entry.IsDir():
			return filepath.SkipDir
		case !on:
			return filepath.SkipAll
		}
		return nil
	})
}

// matches reports whether the steps of a path match those of a pattern, where ** stands
// for any number of them.
func matches(pattern, name []string) bool {
	// Where to try again, with the last ** standing for one more.
	retry, from := -1, 0
	p, n := 0, 0
	for n < len(name) || p < len(pattern) {
		if p < len(pattern) {
			if pattern[p] == "**" {
				retry, from = p+1, n
				p++
				continue
			}
			if n < len(name) {
				if ok, err := path.Match(pattern[p], name[n]); err == nil && ok {
					p, n = p+1, n+1
					continue
				}
			}
		}
		if retry < 0 || from >= len(name) {
			return false
		}
		from++
		p, n = retry, from
	}
	return true
}

// grep is the tool of that name. It uses ripgrep if the box has it.
func (p places) grep(ctx context.Context, call tool.Call) (string, error) {
	var in struct {
		Pattern text `json:"pattern"`
		Path    text `json:"path"`
	}
	if err := decode(call.Input, &in); err != nil {
		return "", fmt.Errorf("invalid grep input: %w", err)
	}
	if in.Pattern == "" {
		return "", errors.New("grep: pattern is required")
	}
	root, err := p.find(cmp.Or(string(in.Path), "."))
	if err != nil {
		return "", fmt.Errorf("grep: %w", err)
	}
	if rg := p.ripgrep(); rg != "" {
		return runRipgrep(ctx, rg, string(in.Pattern), root.path)
	}
	return search(ctx, string(in.Pattern), root.path)
}

// ripgrep returns the path of the first on PATH that the file tools could not have put
// there, or "".
func (p places) ripgrep() string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		name := path.Join(dir, "rg")
		if info, err := os.Stat(name); !path.IsAbs(dir) || err != nil || !info.Mode().IsRegular() || unix.Access(name, unix.X_OK) != nil {
			continue
		}
		if !p.reaches(name) {
			return name
		}
	}
	return ""
}

func runRipgrep(ctx context.Context, rg, pattern, root string) (string, error) {
	cmd := exec.CommandContext(ctx, rg, "--no-config", "-n", "--no-heading", "--max-filesize", fmt.Sprint(searchedMax), "-e", pattern, "--", root)
	cmd.Args[0] = "rg"
	cmd.Env = environment()
	out, complaint := &firstOf{max: outputMax}, &firstOf{max: outputMax}
	cmd.Stdout, cmd.Stderr = out, complaint
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return noMatches, nil
	}
	if err != nil {
		return "", fmt.Errorf("grep: rg failed: %w: %s", err, complaint.held)
	}
	if out.cut {
		return string(out.held) + "\n" + truncated, nil
	}
	return string(out.held), nil
}

// firstOf holds the first of what is written to it.
type firstOf struct {
	max  int
	held []byte
	cut  bool // there was more
}

func (f *firstOf) Write(data []byte) (int, error) {
	n := min(len(data), f.max-len(f.held))
	f.held = append(f.held, data[:n]...)
	f.cut = f.cut || n < len(data)
	return len(data), nil // or the program would be stopped
}

// search is grep without ripgrep.
func search(ctx context.Context, pattern, root string) (string, error) {
	want, err := regexp.Compile(pattern)
	if err != nil {
		return "", fmt.Errorf("grep: invalid regex: %w", err)
	}
	var found []string
	left := outputMax
	err = walk(ctx, root, func(name string, entry fs.DirEntry) (bool, error) {
		if entry.IsDir() {
			return entry.Name() != ".git" && entry.Name() != "node_modules", nil
		}
		content, ok := searchable(name, entry)
		if !ok {
			return true, nil
		}
		for i, line := range bytes.Split(content, []byte("\n")) {
			if !want.Match(line) {
				continue
			}
			hit := fmt.Sprintf("%s:%d:%s", name, i+1, line)
			if left -= len(hit) + 1; left < 0 {
				found = append(found, truncated)
				return false, nil
			}
			found = append(found, hit)
		}
		return true, nil
	})
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return noMatches, nil
	}
	return strings.Join(found, "\n"), nil
}

// sniffed is how much of a file decides whether it is text.
const sniffed = 512

// searchable is the content of a file, if it is one of text and not too large.
func searchable(name string, entry fs.DirEntry) ([]byte, bool) {
	info, err := entry.Info()
	if err != nil || !info.Mode().IsRegular() || info.Size() > searchedMax {
		return nil, false
	}
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	defer file.Close()
	in := bufio.NewReader(file)
	if head, _ := in.Peek(sniffed); bytes.IndexByte(head, 0) >= 0 {
		return nil, false
	}
	data, err := io.ReadAll(io.LimitReader(in, searchedMax+1))
	return data, err == nil && len(data) <= searchedMax
}
