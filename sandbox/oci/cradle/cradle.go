// Package cradle is the process that a box of package oci lives in. It is the first of
// a process-id namespace, which it shares with the box's runtime and, further in, the
// box: when it ends, the kernel ends all of them, and it ends with the worker. In a
// mount and a network namespace of its own it makes the box's root and the ways out of
// its network, has the runtime start the box there, and tells the worker when the box
// ends. So nothing of a box is ever mounted or set up on the host itself.
//
// It must not know who made the bundle, or what is in it. It is a role of the launcher,
// and small, as every box starts it. Start reading at [Run].
package cradle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox/netns"
)

// A Config is what the worker tells a cradle, which starts with these descriptors
// besides the standard streams, the box's own.
//
// The worker writes the configuration to ConfigFile, as JSON. If there is a network,
// the exits come by ExitsFile, and the worker writes [Go] when they are served.
// Replies, one JSON value each, come by ReplyFile.
type Config struct {
	Engine string          // the runtime's executable
	Flags  []string        // for it, ahead of its command
	ID     string          // the box's, for the runtime
	Bundle json.RawMessage // config.json, whose root is Rootfs

	Layers  []string // directories that the box's root is laid over, the upper ones first
	Scratch int64    // bytes that the box may write outside its mounts
	Inodes  int64    // files that it may make there
	Mounts  []Mount  // into the box's root, in this order

	// Owner is the box's root, as an id that this process may take on. What is made in
	// the box's root to mount something over is its.
	Owner int

	// IDMapped has Layers and Mounts appear with the ids of the user namespace that
	// UsersFile is, rather than those on disk.
	IDMapped bool

	Ordinary bool // the worker is not root on the host
	Network  bool
}

// A Mount is something of the host that the box sees.
type Mount struct {
	Source   string
	Target   string // a clean absolute path
	Writable bool
	Owner    int // of what is made to mount it over
}

// A Reply is what a cradle says, exactly one field of which is set.
type Reply struct {
	Started bool   `json:",omitempty"` // the command runs
	Error   string `json:",omitempty"` // it could not be started
	Ended   *int   `json:",omitempty"` // it has ended, with this status: 128 and a signal's number if by that
}

// Go is what the worker writes when the exits are served.
const Go = "true\n"

// The descriptors of a cradle, the last only if the worker is root.
const (
	ConfigFile = 3 + iota
	ReplyFile
	ExitsFile
	UsersFile // and after it, what the worker wants to be held open as long as the box lives
)

// stage is where a cradle keeps what it makes, in memory and in its own mount
// namespace. Every host has the directory, every user may enter it, and no runtime
// needs what is in it.
const stage = "/tmp"

// Rootfs is where the runtime finds the box's root.
const Rootfs = stage + "/root"

// The parts that the launcher has to play for package oci.
const (
	RoleBox   = "oci-box"   // a cradle
	RoleUsers = "oci-users" // holds a user namespace until its standard input ends
)

// RunIfRole does what the process was started for by package oci, if it was, and does
// not return then. It must come first in main.
func RunIfRole() {
	if filepath.Base(os.Args[0]) != netns.LauncherName || len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case RoleBox:
		os.Exit(Run())
	case RoleUsers:
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
}

// Run is the whole life of a cradle. It returns the process's status, after which the
// process must end.
func Run() int {
	// What is inherited is not the runtime's, still less the box's.
	if err := unix.CloseRange(ConfigFile, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "close inherited files:", err)
		return 1
	}
	// Namespaces and the ids that files are made with are a thread's.
	runtime.LockOSThread()
	replies := json.NewEncoder(os.NewFile(ReplyFile, "replies"))
	requests := json.NewDecoder(os.NewFile(ConfigFile, "configuration"))

	pid, err := start(requests)
	reply := Reply{Started: true}
	if err != nil {
		reply = Reply{Error: err.Error()}
	}
	if err := replies.Encode(reply); err != nil || reply.Error != "" {
		return 1
	}
	status := reap(pid)
	if err := replies.Encode(Reply{Ended: &status}); err != nil {
		return 1
	}
	return 0
}

// start starts the box and returns the process id of its command.
func start(requests *json.Decoder) (int, error) {
	var config Config
	if err := requests.Decode(&config); err != nil {
		return 0, fmt.Errorf("read the configuration: %w", err)
	}
	if err := network(config); err != nil {
		return 0, err
	}
	if err := setUp(config); err != nil {
		return 0, err
	}
	if config.Network {
		var served bool
		if err := requests.Decode(&served); err != nil {
			return 0, errors.New("the worker does not serve the box's network")
		}
	}
	return launch(config)
}

// network sets up the network namespace, which is new.
func network(config Config) error {
	if !config.Network {
		return loopback()
	}
	sock := os.NewFile(ExitsFile, "exits")
	defer sock.Close()
	exits, err := netns.Jail()
	if err != nil {
		// Who waits for the exits is told, too.
		return errors.Join(err, netns.SendError(sock, err))
	}
	defer exits.Close()
	return netns.Send(sock, exits)
}

// loopback brings up the only interface of a box without a network.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	return nil
}

// launch has the runtime start the box, and returns the process id of its command.
func launch(config Config) (int, error) {
	const log, pidFile = stage + "/log", stage + "/pid"
	args := append([]string{filepath.Base(config.Engine)}, config.Flags...)
	args = append(args, "--root", stage+"/state", "--log", log, "--log-format", "json",
		"run", "--detach", "--bundle", stage, "--pid-file", pidFile, config.ID)
	cmd := &exec.Cmd{
		Path: engine, Args: args, Env: []string{}, Dir: stage,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if err := cmd.Run(); err != nil {
		if complaint := lastMessage(log); complaint != "" {
			return 0, errors.New(complaint)
		}
		return 0, fmt.Errorf("run %s: %w", config.Engine, err)
	}
	// The streams are the box's alone, so that they end when it closes them.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return 0, err
		}
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, fmt.Errorf("%s does not say what it started: %w", config.Engine, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// lastMessage returns the last message of a runtime's log, whose lines are JSON.
func lastMessage(log string) string {
	data, _ := os.ReadFile(log)
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	last := lines[len(lines)-1]
	var entry struct{ Msg string }
	if json.Unmarshal(last, &entry) == nil && entry.Msg != "" {
		return entry.Msg
	}
	return strings.ToValidUTF8(string(last), "?")
}

// reap waits until the process has ended, and for all others that were left to us.
func reap(pid int) int {
	for {
		var status unix.WaitStatus
		switch ended, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 128 + int(unix.SIGKILL) // it was not ours to wait for, and is gone
		case ended != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		default:
			return status.ExitStatus()
		}
	}
}
