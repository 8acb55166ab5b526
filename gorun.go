//go:build cgo && !race && !slim

package main

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// rerunStatic makes `go run .` work where there is a C compiler. Go then links the
// program to the host's C library, but gVisor's processes start where there is no
// such thing. The source is at hand, so it is built and run once more without C. A
// binary that somebody built and kept is left alone; the sandbox's self-test says
// what is wrong with it.
func rerunStatic() {
	self, err := os.Executable()
	if err != nil || !strings.Contains(self, "go-build") || !linkedDynamically(self) {
		return
	}
	tool, err := exec.LookPath("go")
	_, source, _, ok := runtime.Caller(0)
	if err != nil || !ok || !filepath.IsAbs(source) {
		return
	}
	fmt.Fprintln(os.Stderr, "bailey: building once more without cgo, as gVisor needs a static program (CGO_ENABLED=0 avoids this)")
	args := append([]string{tool, "run", filepath.Dir(source)}, os.Args[1:]...)
	err = syscall.Exec(tool, args, slices.Concat(os.Environ(), []string{"CGO_ENABLED=0"}))
	fmt.Fprintln(os.Stderr, "bailey: run go:", err) // and try as it is
}

// linkedDynamically reports whether a program needs a loader and libraries.
func linkedDynamically(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
