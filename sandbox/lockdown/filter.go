package lockdown

import (
	"encoding/binary"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// Calls say which system calls a program may make: those of every program, and what is
// named here.
type Calls struct {
	Sockets Sockets

	// Box says that all files and processes within reach are the box's own, as they
	// are in namespaces. Without it, neither the modes, owners, times and attributes of
	// files are changed by their paths, nor limits and priorities of other processes,
	// and there are no queues, semaphores or shared memory by name.
	Box bool

	// Counted is for who bounds memory by what processes have of it: there are no files
	// in memory without a name, and no shared memory by key of more than a page each,
	// both of which can be filled without being anybody's.
	Counted bool

	// Pinned keeps programs on the CPUs that they were started on.
	Pinned bool
}

// Sockets say which there may be besides pairs.
type Sockets struct {
	Unix    bool // with a name on this host
	Network bool // TCP and UDP, and asking the kernel for addresses and routes
}

// Where a filter finds what a call is about: struct seccomp_data of seccomp(2). Of an
// argument, the half that counts; both architectures put it first.
const (
	atNumber       = 0
	atArchitecture = 4
	atArguments    = 16
)

// namespaces are the flags of clone that make new ones. (CLONE_NEWTIME, of clone3
// alone, lies among the bits of the exit signal.)
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// terminals are the requests of ioctl by which one terminal's user types or acts for
// another: TIOCSTI, TIOCLINUX, TIOCSETD and TIOCCONS.
var terminals = []uint32{unix.TIOCSTI, 0x541C, unix.TIOCSETD, unix.TIOCCONS}

// personalityQuery asks for the personality and leaves it.
const personalityQuery = 0xffffffff

// A Filter is a program for the kernel to decide by, in the kernel's own form.
type Filter []byte

// Filter is the program that lets those calls through. Of the
// rest it lets a call fail that the kernel had before this list was made, with EPERM,
// and newer ones as if the kernel had none. A call of another architecture, such as
// those of 32 bits, ends the process.
func (c Calls) Filter() Filter {
	p := program{
		load(atArchitecture),
		jump(unix.BPF_JEQ, architecture, 1, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS),
		load(atNumber),
		jump(unix.BPF_JGE, foreign, 0, 1),
		fail(unix.ENOSYS),
	}
	for _, number := range unsupported {
		p.on(number, program{fail(unix.ENOSYS)})
	}
	p.on(unix.SYS_CLONE, program{
		argument(0),
		jump(unix.BPF_JSET, namespaces, 0, 1),
		fail(unix.EPERM),
		answer(unix.SECCOMP_RET_ALLOW),
	})
	p.on(unix.SYS_IOCTL, append(program{argument(1)}, either(terminals, fail(unix.EPERM), answer(unix.SECCOMP_RET_ALLOW))...))
	p.on(unix.SYS_PERSONALITY, append(program{argument(0)},
		either([]uint32{0, personalityQuery}, answer(unix.SECCOMP_RET_ALLOW), fail(unix.EPERM))...))
	p.on(unix.SYS_SOCKETPAIR, append(program{argument(0)},
		either([]uint32{unix.AF_UNIX}, answer(unix.SECCOMP_RET_ALLOW), fail(unix.EAFNOSUPPORT))...))
	p.on(unix.SYS_SOCKET, c.Sockets.decide())
	if c.Counted {
		p.on(unix.SYS_MEMFD_CREATE, program{fail(unix.ENOSYS)})
		if c.Box {
			p.on(unix.SYS_SHMGET, smallSegments)
		}
	}
	if c.Pinned {
		p.on(unix.SYS_SCHED_SETAFFINITY, program{fail(unix.EPERM)})
	}

	numbers := slices.Concat(ordinary, ordinaryHere)
	if c.Box {
		numbers = slices.Concat(numbers, ofFiles, ofFilesHere, ofProcesses, ofGroups, messages)
	} else {
		p.onlyItself()
	}
	slices.Sort(numbers)
	for len(numbers) > 0 {
		first, last := numbers[0], numbers[0]
		for len(numbers) > 0 && numbers[0] <= last+1 {
			last, numbers = numbers[0], numbers[1:]
		}
		p = append(p,
			jump(unix.BPF_JGE, first, 0, 2),
			jump(unix.BPF_JGT, last, 1, 0),
			answer(unix.SECCOMP_RET_ALLOW))
	}
	p = append(p,
		jump(unix.BPF_JGT, newest, 0, 1),
		fail(unix.ENOSYS),
		fail(unix.EPERM))
	var f Filter
	for _, step := range p {
		f = binary.NativeEndian.AppendUint16(f, step.Code)
		f = append(f, step.Jt, step.Jf)
		f = binary.NativeEndian.AppendUint32(f, step.K)
	}
	return f
}

// smallSegments lets shared memory by key be made of which there is less than anybody
// could want to hide in, as some programs have for a lock.
var smallSegments = program{
	load(atArguments + 8 + 4),
	jump(unix.BPF_JEQ, 0, 1, 0),
	fail(unix.ENOMEM),
	argument(1),
	jump(unix.BPF_JGT, 4096, 0, 1),
	fail(unix.ENOMEM),
	answer(unix.SECCOMP_RET_ALLOW),
}

// newest is the last call that this list knows of, whether it lets it through or not.
const newest = unix.SYS_LISTNS

// onlyItself lets the calls about processes through if they are about the caller, and
// those about the times of files if they are about an open one.
func (p *program) onlyItself() {
	zero := either([]uint32{0}, answer(unix.SECCOMP_RET_ALLOW), fail(unix.EPERM))
	for _, number := range ofProcesses {
		p.on(number, append(program{argument(0)}, zero...))
	}
	p.on(unix.SYS_SETPRIORITY, append(program{
		argument(0),
		jump(unix.BPF_JEQ, unix.PRIO_PROCESS, 1, 0),
		fail(unix.EPERM),
		argument(1),
	}, zero...))
	p.on(unix.SYS_UTIMENSAT, append(program{
		load(atArguments + 8 + 4),
		jump(unix.BPF_JEQ, 0, 1, 0),
		fail(unix.EPERM),
		argument(1),
	}, zero...))
}

// decide decides about a new socket by its family, type and protocol.
func (c Sockets) decide() program {
	allow := answer(unix.SECCOMP_RET_ALLOW)
	p := program{argument(0)}
	if c.Unix {
		p.on(unix.AF_UNIX, program{allow})
	}
	if c.Network {
		p.on(unix.AF_NETLINK, append(program{argument(2)}, either([]uint32{unix.NETLINK_ROUTE}, allow, fail(unix.EPROTONOSUPPORT))...))
		for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
			kinds := program{argument(1), {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf}}
			kinds.on(unix.SOCK_STREAM, append(program{argument(2)}, either([]uint32{0, unix.IPPROTO_TCP}, allow, fail(unix.EPROTONOSUPPORT))...))
			kinds.on(unix.SOCK_DGRAM, append(program{argument(2)}, either([]uint32{0, unix.IPPROTO_UDP}, allow, fail(unix.EPROTONOSUPPORT))...))
			p.on(family, append(kinds, fail(unix.EPERM)))
		}
	}
	return append(p, fail(unix.EAFNOSUPPORT))
}

// A program is one of the kernel's packet filters, as seccomp uses them.
type program []unix.SockFilter

// on appends what to do when the value loaded is this one, which must end in an answer.
func (p *program) on(value uint32, then program) {
	if len(then) > math.MaxUint8 {
		panic("a step too long to be jumped over")
	}
	*p = append(append(*p, jump(unix.BPF_JEQ, value, 0, uint8(len(then)))), then...)
}

// either answers one way when the value loaded is among these, and another when not.
func either(values []uint32, yes, no unix.SockFilter) program {
	var p program
	for _, value := range values {
		p.on(value, program{yes})
	}
	return append(p, no)
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func argument(n uint32) unix.SockFilter { return load(atArguments + 8*n) }

func jump(how uint16, value uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | how, K: value, Jt: yes, Jf: no}
}

func answer(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

func fail(errno unix.Errno) unix.SockFilter {
	return answer(unix.SECCOMP_RET_ERRNO | uint32(errno))
}
