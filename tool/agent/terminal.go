package agent

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/tool"
)

// A terminal is our end of one. Closing it ends reads and writes that are under way.
type terminal struct{ *os.File }

// openTerminal opens a new terminal, with the end that programs have.
func openTerminal() (terminal, *os.File, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return terminal{}, nil, fmt.Errorf("open a terminal: %w", err)
	}
	ours := terminal{os.NewFile(uintptr(fd), "terminal")}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) // unlock the other end
	}
	var theirs *os.File
	if err == nil {
		theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		ours.Close()
		return terminal{}, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return ours, theirs, nil
}

// start starts a program whose terminal this is to be.
func start(cmd *exec.Cmd, theirs *os.File) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return cmd.Start()
}

// resize tells the programs in the terminal its size.
func (t terminal) resize(size tool.Terminal) error {
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// makeRaw has the terminal pass on everything as it is, of whatever length, and show
// nothing of what is typed.
func (t terminal) makeRaw() error {
	return t.control(func(fd int) error {
		s, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		s.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		s.Oflag &^= unix.OPOST
		s.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		s.Cc[unix.VMIN], s.Cc[unix.VTIME] = 1, 0
		return unix.IoctlSetTermios(fd, unix.TCSETS, s)
	})
}

// control does something with the descriptor, which it leaves non-blocking.
func (t terminal) control(do func(fd int) error) error {
	conn, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
