package lockdown

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

// decide runs a filter as the kernel does and returns its answer.
func decide(f Filter, arch, number uint32, args ...uint64) (uint32, error) {
	data := make([]byte, 64)
	binary.NativeEndian.PutUint32(data[atNumber:], number)
	binary.NativeEndian.PutUint32(data[atArchitecture:], arch)
	for i, arg := range args {
		binary.NativeEndian.PutUint64(data[atArguments+8*i:], arg)
	}
	steps := len(f) / unix.SizeofSockFilter
	var a uint32
	for at := 0; at < steps; at++ {
		step := f[at*unix.SizeofSockFilter:]
		code, yes, no, k := binary.NativeEndian.Uint16(step), int(step[2]), int(step[3]), binary.NativeEndian.Uint32(step[4:])
		var taken bool
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.NativeEndian.Uint32(data[k:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= k
			continue
		case unix.BPF_RET | unix.BPF_K:
			return k, nil
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ:
			taken = a == k
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JGE:
			taken = a >= k
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JGT:
			taken = a > k
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JSET:
			taken = a&k != 0
		default:
			return 0, fmt.Errorf("step %d has the code %#x", at, code)
		}
		if taken {
			at += yes
		} else {
			at += no
		}
	}
	return 0, errors.New("it ends without an answer")
}

const allow = unix.SECCOMP_RET_ALLOW

func errno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

func TestFilter(t *testing.T) {
	t.Parallel()
	box := Calls{Sockets: Sockets{Unix: true, Network: true}, Box: true}
	counted, pinned := Calls{Box: true, Counted: true}, Calls{Box: true, Pinned: true}
	host := Calls{}
	for name, c := range map[string]struct {
		calls  Calls
		number uint32
		args   []uint64
		want   uint32
	}{
		"read":                         {box, unix.SYS_READ, nil, allow},
		"the first there is":           {box, 0, nil, allow},
		"mount":                        {box, unix.SYS_MOUNT, nil, errno(unix.EPERM)},
		"ptrace":                       {box, unix.SYS_PTRACE, nil, errno(unix.EPERM)},
		"one of the future":            {box, 5000, nil, errno(unix.ENOSYS)},
		"the last known":               {box, newest, nil, errno(unix.EPERM)},
		"clone3":                       {box, unix.SYS_CLONE3, nil, errno(unix.ENOSYS)},
		"fork":                         {box, unix.SYS_CLONE, []uint64{17}, allow},
		"a thread":                     {box, unix.SYS_CLONE, []uint64{0x3d0f00}, allow},
		"clone of users":               {box, unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | 17}, errno(unix.EPERM)},
		"clone of control groups":      {box, unix.SYS_CLONE, []uint64{unix.CLONE_NEWCGROUP}, errno(unix.EPERM)},
		"TCP":                          {box, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, 6}, allow},
		"UDP over IPv6":                {box, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM, 0}, allow},
		"ping":                         {box, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6}, errno(unix.EPROTONOSUPPORT)},
		"raw":                          {box, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW, 6}, errno(unix.EPERM)},
		"TCP of many paths":            {box, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, 262}, errno(unix.EPROTONOSUPPORT)},
		"routes":                       {box, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, 0}, allow},
		"netfilter":                    {box, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, 12}, errno(unix.EPROTONOSUPPORT)},
		"vsock":                        {box, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, errno(unix.EAFNOSUPPORT)},
		"a family that looks like one": {box, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK | 1<<32, unix.SOCK_STREAM, 0}, errno(unix.EAFNOSUPPORT)},
		"a pair":                       {box, unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX}, allow},
		"a pair of others":             {box, unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC}, errno(unix.EAFNOSUPPORT)},
		"the size of a terminal":       {box, unix.SYS_IOCTL, []uint64{0, unix.TIOCGWINSZ}, allow},
		"typing for another":           {box, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, errno(unix.EPERM)},
		"typing, with more bits":       {box, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | 0xffffffff<<32}, errno(unix.EPERM)},
		"the personality":              {box, unix.SYS_PERSONALITY, []uint64{0xffffffff}, allow},
		"another personality":          {box, unix.SYS_PERSONALITY, []uint64{8}, errno(unix.EPERM)},
		"a mode":                       {box, unix.SYS_FCHMODAT, nil, allow},
		"another's limits":             {box, unix.SYS_PRLIMIT64, []uint64{77}, allow},
		"a message":                    {box, unix.SYS_MSGGET, nil, allow},

		"a file in memory":            {box, unix.SYS_MEMFD_CREATE, nil, allow},
		"a file in memory, counted":   {counted, unix.SYS_MEMFD_CREATE, nil, errno(unix.ENOSYS)},
		"a segment":                   {box, unix.SYS_SHMGET, []uint64{0, 1 << 30}, allow},
		"a page, counted":             {counted, unix.SYS_SHMGET, []uint64{0, 4096}, allow},
		"a segment, counted":          {counted, unix.SYS_SHMGET, []uint64{0, 4097}, errno(unix.ENOMEM)},
		"a segment, counted, high up": {counted, unix.SYS_SHMGET, []uint64{0, 1 << 32}, errno(unix.ENOMEM)},
		"another CPU":                 {box, unix.SYS_SCHED_SETAFFINITY, nil, allow},
		"another CPU, pinned":         {pinned, unix.SYS_SCHED_SETAFFINITY, nil, errno(unix.EPERM)},
		"a pinned one's priority":     {pinned, unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PROCESS, 0, 5}, allow},

		"on the host, a mode":              {host, unix.SYS_FCHMODAT, nil, errno(unix.EPERM)},
		"on the host, an open file's mode": {host, unix.SYS_FCHMOD, nil, allow},
		"on the host, a message":           {host, unix.SYS_MSGGET, nil, errno(unix.EPERM)},
		"on the host, its limits":          {host, unix.SYS_PRLIMIT64, []uint64{0}, allow},
		"on the host, another's limits":    {host, unix.SYS_PRLIMIT64, []uint64{77}, errno(unix.EPERM)},
		"on the host, its priority":        {host, unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PROCESS, 0, 5}, allow},
		"on the host, all priorities":      {host, unix.SYS_SETPRIORITY, []uint64{unix.PRIO_USER, 0, 5}, errno(unix.EPERM)},
		"on the host, another's priority":  {host, unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PROCESS, 77, 5}, errno(unix.EPERM)},
		"on the host, an open file's time": {host, unix.SYS_UTIMENSAT, []uint64{3, 0}, allow},
		"on the host, a time":              {host, unix.SYS_UTIMENSAT, []uint64{3, 0x7f0000001000}, errno(unix.EPERM)},
		"on the host, a time high up":      {host, unix.SYS_UTIMENSAT, []uint64{3, 0x7f << 32}, errno(unix.EPERM)},
		"on the host, TCP":                 {host, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, errno(unix.EAFNOSUPPORT)},
		"on the host, sockets with names":  {host, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, errno(unix.EAFNOSUPPORT)},
		"on the host, a pair":              {host, unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX}, allow},
	} {
		if got, err := decide(c.calls.Filter(), architecture, c.number, c.args...); err != nil || got != c.want {
			t.Errorf("%s: %#x, %v, want %#x", name, got, err, c.want)
		}
	}
	if got, err := decide(box.Filter(), unix.AUDIT_ARCH_I386, unix.SYS_READ); err != nil || got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a call of 32 bits: %#x, %v", got, err)
	}
}

// Whatever is called, there is an answer, and no call is let through but those listed.
func TestFilterAlwaysAnswers(t *testing.T) {
	t.Parallel()
	listed := make(map[uint32]bool)
	for _, list := range [][]uint32{ordinary, ordinaryHere, ofFiles, ofFilesHere, ofProcesses, ofGroups, messages,
		{unix.SYS_CLONE, unix.SYS_IOCTL, unix.SYS_PERSONALITY, unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_UTIMENSAT}} {
		for _, number := range list {
			listed[number] = true
		}
	}
	for _, c := range []Calls{{}, {Box: true}, {Sockets: Sockets{true, true}, Box: true}, {Box: true, Counted: true, Pinned: true}, {Counted: true, Pinned: true}} {
		f := c.Filter()
		if steps := len(f) / unix.SizeofSockFilter; steps > 1000 {
			t.Errorf("%d steps, of 4096 that the kernel takes", steps)
		}
		for i := range uint32(3000) {
			number := i
			if i >= 1000 {
				number = rand.Uint32()
			}
			got, err := decide(f, architecture, number, rand.Uint64(), rand.Uint64(), rand.Uint64())
			if err != nil {
				t.Fatalf("call %d: %v", number, err)
			}
			if got == allow && !listed[number] {
				t.Errorf("call %d is let through", number)
			}
		}
	}
}
