package boxinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/lockdown"
)

// What is left to do once the command is started is to collect the dead, for as long as
// the box lives. A program of Go's takes a megabyte for it, and this one still has rights,
// in every thread, that nobody in the box must come by. So the process becomes the
// smallest program that does it: a page of code without a runtime, in reaper_*.s. It says
// on the line that the box runs, waits for processes until the command has ended, says
// that, with the wait status, and exits. What it is given lies at a fixed address:
//
//	0x10078 the command's process, 32 bits
//	0x1007c the descriptor of the line, 32 bits
//	0x10080 the word that the box runs
//	0x10081 the word that the command has ended
//	0x10088 the code
const (
	reaperBase   = 0x10000 // a page of every size begins here, and none of the kernel's
	reaperHeader = 64 + 56 // of an ELF file with one segment
	reaperParams = 16
	reaperMax    = 192 // bytes of code, at the most
)

// reaperCode is where the code is in this program.
func reaperCode() *byte

// reaperMachines are the numbers of the architectures in ELF files.
var reaperMachines = map[string]uint16{"amd64": 62, "arm64": 183}

// reaperFile is the program, for a command and a line, as an ELF file (elf(5)).
func reaperFile(command, line int) []byte {
	const size = reaperHeader + reaperParams + reaperMax
	to := binary.LittleEndian // as both architectures have it
	f := append(make([]byte, 0, size), "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	f = to.AppendUint16(f, 2) // to be run where it says
	f = to.AppendUint16(f, reaperMachines[runtime.GOARCH])
	f = to.AppendUint32(f, 1)
	f = to.AppendUint64(f, reaperBase+reaperHeader+reaperParams) // where it begins
	f = to.AppendUint64(f, 64)                                   // the segments, here in the file
	f = to.AppendUint64(f, 0)
	f = to.AppendUint32(f, 0)
	for _, field := range []uint16{64, 56, 1, 0, 0, 0} { // sizes and numbers of headers
		f = to.AppendUint16(f, field)
	}
	f = to.AppendUint32(f, 1) // to be loaded,
	f = to.AppendUint32(f, 5) // to be read and run: all of the file
	for _, field := range []uint64{0, reaperBase, reaperBase, size, size, reaperBase} {
		f = to.AppendUint64(f, field)
	}
	f = to.AppendUint32(f, uint32(command))
	f = to.AppendUint32(f, uint32(line))
	f = append(f, byte(Running), byte(Ended), 0, 0, 0, 0, 0, 0)
	return append(f, unsafe.Slice(reaperCode(), reaperMax)...)
}

// reaperName is the program's file, beside the furniture.
const reaperName = "init"

// stay becomes the program that waits for the command. It returns only if that fails.
// Another thread than the command was started by does it: the Landlock domain is for the
// command alone.
func (b *box) stay(command int) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread()
		failed <- b.becomeReaper(command)
	}()
	return <-failed
}

func (b *box) becomeReaper(command int) error {
	if b.plan.Change {
		if err := errors.Join(own(), hide()); err != nil {
			return err
		}
	}
	// The memory of a program that its user cannot read is nobody's to look into, from
	// the first moment on, unless the host says that it is. So the program says it, too.
	name := fmt.Sprintf("/proc/self/fd/%d/%s", b.store.fd, reaperName)
	if err := os.WriteFile(name, reaperFile(command, fdLine), 0o100); err != nil {
		return fmt.Errorf("make the program that waits: %w", err)
	}
	for _, fd := range []uintptr{fdLine, fdHold} {
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep a descriptor: %w", err)
		}
	}
	// Rights would come back with it to who is root, and the death signal would go,
	// which this thread does not have yet anyway.
	if err := lockdown.DropBounding(); err != nil {
		return err
	}
	if err := lockdown.DropCapabilities(); err != nil {
		return err
	}
	if err := lockdown.NoNewPrivileges(); err != nil {
		return err
	}
	if err := dieWithDriver(); err != nil {
		return err
	}
	return fmt.Errorf("run the program that waits: %w", syscall.Exec(name, os.Args, nil))
}
