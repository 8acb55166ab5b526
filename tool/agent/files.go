package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bailey-platform/bailey/tool"
)

// textMax is the largest file that is read or edited as a whole, in bytes, and the most
// of a larger one that is read in part.
const textMax = 256 << 10

// A function is what most tools are: it returns what the model is to read, as an error
// if the call failed.
type function func(ctx context.Context, call tool.Call) (string, error)

// sentences is an error that says to the model what to do instead.
func sentences(format string, args ...any) error { return instead(fmt.Sprintf(format, args...)) }

type instead string

func (i instead) Error() string { return string(i) }

// plain makes a runner of a function.
func plain(f function) runner {
	return func(ctx context.Context, call tool.Call) tool.Result {
		said, err := f(ctx, call)
		switch {
		case err == nil:
			return textResult(said)
		case ctx.Err() != nil:
			return cut(ctx, call)
		}
		return tool.ErrorResult(err.Error())
	}
}

// readText is the tool `read` for what is text.
func (p places) readText(_ context.Context, call tool.Call) (string, error) {
	var in struct {
		FilePath  text     `json:"file_path"`
		ViewRange []number `json:"view_range"`
	}
	if err := decode(call.Input, &in); err != nil {
		return "", fmt.Errorf("invalid read input: %w", err)
	}
	if in.FilePath != "" && len(in.ViewRange) != 0 && len(in.ViewRange) != 2 {
		return "", errors.New("read: view_range must be [start_line, end_line]")
	}
	if len(in.ViewRange) == 0 {
		data, err := p.readWhole("read", string(in.FilePath), textMax)
		if large, ok := errors.AsType[*tooLarge](err); ok {
			return "", sentences("%v Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].", large)
		}
		return string(data), err
	}
	file, _, err := p.open("read", string(in.FilePath))
	if err != nil {
		return "", err
	}
	defer file.Close()
	said, err := lines(file, string(in.FilePath), int64(in.ViewRange[0]), int64(in.ViewRange[1]))
	if err != nil {
		return "", fmt.Errorf("read%w", err)
	}
	return said, nil
}

// open opens a file for a tool. What is no file, and might never end or even begin, is
// not opened.
func (p places) open(tool, name string) (*os.File, int64, error) {
	if name == "" {
		return nil, 0, fmt.Errorf("%s: file_path is required", tool)
	}
	at, err := p.find(name)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", tool, err)
	}
	if at.info == nil {
		if at.info, err = os.Stat(at.path); err != nil {
			return nil, 0, fmt.Errorf("%s %s: %s", tool, name, reason(err))
		}
	}
	if !at.info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: %s is not a regular file", tool, name)
	}
	file, err := openFile(at.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("%s %s: %s", tool, name, reason(err))
	}
	return file, at.info.Size(), nil
}

// openFile is os.OpenFile for a file that need never be waited for. To find that out,
// which os.OpenFile does, takes five calls of gVisor's kernel.
func openFile(name string, flags int, mode os.FileMode) (*os.File, error) {
	for {
		fd, err := syscall.Open(name, flags|syscall.O_CLOEXEC, uint32(mode.Perm()))
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, syscall.EINTR):
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// tooLarge is the error of a file that is larger than max.
type tooLarge struct {
	tool, name string
	size, max  int64
}

func (e *tooLarge) Error() string {
	if e.size <= e.max { // as files have it that are made as they are read
		return fmt.Sprintf("%s: %s holds more than the %d-byte limit.", e.tool, e.name, e.max)
	}
	return fmt.Sprintf("%s: %s is %d bytes, exceeds %d-byte limit.", e.tool, e.name, e.size, e.max)
}

// readWhole reads a file of at most max bytes.
func (p places) readWhole(tool, name string, max int64) ([]byte, error) {
	file, size, err := p.open(tool, name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > max {
		return nil, &tooLarge{tool, name, size, max}
	}
	// Room for all of it, and to see that it is all, makes two calls of many.
	in := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	_, err = in.ReadFrom(io.LimitReader(file, max+1))
	data := in.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %s", tool, name, reason(err))
	}
	if int64(len(data)) > max {
		return nil, &tooLarge{tool, name, size, max}
	}
	return data, nil
}

// lines returns the lines from first to last of a file, counted from 1, or to its end if
// last is below 1. No more of it is held than is returned.
func lines(file io.Reader, name string, first, last int64) (string, error) {
	from := max(1, first)
	if last > 0 && last < from {
		return "", nil
	}
	var said []byte
	in := bufio.NewReaderSize(file, 64<<10)
	for line := int64(1); last < 1 || line <= last; {
		part, err := in.ReadSlice('\n')
		whole := err == nil
		if line >= from {
			said = append(said, part...)
			if whole && line == last {
				said = said[:len(said)-1]
			}
			if len(said) > textMax {
				if from == last {
					return "", sentences(": line %d of %s alone exceeds %d-byte limit. The read tool cannot return part of a line, so view_range cannot narrow this further.",
						last, name, textMax)
				}
				return "", sentences(": view_range [%d, %d] of %s exceeds %d-byte limit. Narrow the view_range to read a smaller portion.",
					first, last, name, textMax)
			}
		}
		switch {
		case whole:
			line++
		case errors.Is(err, io.EOF):
			return string(said), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", fmt.Errorf(" %s: %s", name, reason(err))
		}
	}
	return string(said), nil
}

// write is the tool of that name.
func (p places) write(_ context.Context, call tool.Call) (string, error) {
	var in struct {
		FilePath text `json:"file_path"`
		Content  text `json:"content"`
	}
	if err := decode(call.Input, &in); err != nil {
		return "", fmt.Errorf("invalid write input: %w", err)
	}
	if in.FilePath == "" {
		return "", errors.New("write: file_path is required")
	}
	at, err := p.findWritable(string(in.FilePath))
	if err != nil {
		return "", fmt.Errorf("write: %w", err)
	}
	if at.info == nil {
		if err := os.MkdirAll(filepath.Dir(at.path), 0o700); err != nil {
			return "", fmt.Errorf("write %s: mkdir: %s", in.FilePath, reason(err))
		}
	}
	if err := replace(at, string(in.Content)); err != nil {
		return "", fmt.Errorf("write %s: %s", in.FilePath, reason(err))
	}
	return fmt.Sprintf("wrote %d bytes to %s", len(in.Content), in.FilePath), nil
}

// edit is the tool of that name.
func (p places) edit(_ context.Context, call tool.Call) (string, error) {
	var in struct {
		FilePath   text  `json:"file_path"`
		OldString  text  `json:"old_string"`
		NewString  text  `json:"new_string"`
		ReplaceAll truth `json:"replace_all"`
	}
	if err := decode(call.Input, &in); err != nil {
		return "", fmt.Errorf("invalid edit input: %w", err)
	}
	name, before, after := string(in.FilePath), string(in.OldString), string(in.NewString)
	switch {
	case name == "":
		return "", errors.New("edit: file_path is required")
	case before == "":
		return "", errors.New("edit: old_string is required")
	}
	at, err := p.findWritable(name)
	if err != nil {
		return "", fmt.Errorf("edit: %w", err)
	}
	data, err := p.readWhole("edit", name, textMax)
	if large, ok := errors.AsType[*tooLarge](err); ok {
		return "", sentences("%v The edit tool loads the whole file and cannot modify a file this large.", large)
	}
	if err != nil {
		return "", err
	}
	count := strings.Count(string(data), before)
	switch {
	case count == 0:
		return "", fmt.Errorf("edit: old_string not found in %s", name)
	case count > 1 && !bool(in.ReplaceAll):
		return "", fmt.Errorf("edit: old_string appears %d times in %s (must be unique)", count, name)
	}
	if err := replace(at, strings.ReplaceAll(string(data), before, after)); err != nil {
		return "", fmt.Errorf("edit %s: %s", name, reason(err))
	}
	return fmt.Sprintf("edited %s (%d replacement(s))", name, count), nil
}

// replace makes a file hold this and nothing else, all at once: who reads it meanwhile
// sees the one content or the other, and it stays as it was if that fails.
func replace(at place, content string) error {
	mode := os.FileMode(temporary)
	if at.info != nil {
		mode = at.info.Mode().Perm()
	}
	file, err := createTemp(filepath.Dir(at.path))
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	if mode != temporary {
		err = errors.Join(err, file.Chmod(mode))
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), at.path)
	}
	if err != nil {
		_ = os.Remove(file.Name()) // what failed first says more
	}
	return err
}

// temporary is the mode of a file that is being written.
const temporary = 0o600

// createTemp makes a file with a name of its own in the directory.
func createTemp(dir string) (*os.File, error) {
	for try := 0; ; try++ {
		name := filepath.Join(dir, fmt.Sprintf(".bailey-%d", rand.Uint32()))
		file, err := openFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, temporary)
		if !errors.Is(err, fs.ErrExist) || try == 100 {
			return file, err
		}
	}
}
