package verify

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
)

var processChecks = []check{
	{
		id:    "process/kill",
		tried: "kill a process outside, by its number and by signalling all there are",
		probe: func(p *prober) outcome {
			return denied(map[string]func() error{
				"kill":   func() error { return unix.Kill(p.facts.PID, unix.SIGKILL) },
				"tgkill": func() error { return unix.Tgkill(p.facts.PID, p.facts.PID, unix.SIGKILL) },
				"pidfd": func() error {
					fd, err := unix.PidfdOpen(p.facts.PID, 0)
					if err != nil {
						return err
					}
					defer unix.Close(fd)
					return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				},
			})
		},
		judge: alive,
	},
	{
		id:    "process/ptrace",
		tried: "trace a process outside and read its memory",
		probe: func(p *prober) outcome {
			return denied(map[string]func() error{
				"ptrace": func() error {
					if err := unix.PtraceSeize(p.facts.PID); err != nil {
						return err
					}
					return unix.PtraceDetach(p.facts.PID)
				},
				"process_vm_readv": func() error {
					buf := make([]byte, 16)
					_, err := unix.ProcessVMReadv(p.facts.PID, []unix.Iovec{{Base: &buf[0], Len: 16}}, []unix.RemoteIovec{{Base: 0x400000, Len: 16}}, 0)
					if errors.Is(err, unix.EFAULT) {
						return nil // we might, but there is nothing at that place
					}
					return err
				},
				"/proc/PID/mem": func() error {
					return opened(unix.Open(fmt.Sprintf("/proc/%d/mem", p.facts.PID), unix.O_RDONLY, 0))
				},
			})
		},
		judge: alive,
	},
	{
		id:    "process/environ",
		tried: "read the environment, command line and descriptors of every process there is, for a worker's key",
		probe: func(p *prober) outcome {
			names, _ := filepath.Glob("/proc/[0-9]*/environ")
			cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			if where := p.readsSecret(append(names, cmdlines...)...); len(where) > 0 {
				return broken("the key of a process outside is in %s", where[0])
			}
			return held("%d processes are seen, none with the key", len(names))
		},
	},
	{
		id:    "process/visible",
		tried: "see processes of the host",
		applies: func(r sandbox.Report) string {
			if r.Isolation == sandbox.Restricted {
				return "the backend does not hide the host's processes: it is weak, and says so"
			}
			return ""
		},
		probe: func(p *prober) outcome {
			links, _ := filepath.Glob("/proc/[0-9]*/exe")
			data, err := readSome(fmt.Sprintf("/proc/%d/cmdline", p.facts.PID), 4096)
			if err == nil && bytes.Contains(data, []byte("sleep 3600")) {
				return broken("process %d of the host is seen", p.facts.PID)
			}
			return held("the box has %d processes of its own and sees no others", len(links))
		},
	},
	{
		id:    "process/privileges",
		tried: "become root, regain capabilities, and run set-user-id programs",
		probe: func(p *prober) outcome {
			var found []string
			if unix.Geteuid() == 0 {
				found = append(found, "it runs as root")
			}
			status, err := readSome("/proc/thread-self/status", 64<<10)
			if err != nil {
				status, err = readSome("/proc/self/status", 64<<10)
			}
			if err != nil && len(status) == 0 {
				return broken("its privileges cannot be read: %v", err)
			}
			for line := range strings.Lines(string(status)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
				value = strings.TrimSpace(value)
				switch name {
				case "CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd":
					if name == "CapBnd" && !p.facts.Isolation.AtLeast(sandbox.SharedKernel) {
						// Only root could clear it. It bounds what is gained by running a
						// program, and that nothing is gained is asked below.
						continue
					}
					if strings.Trim(value, "0") != "" {
						found = append(found, name+" is "+value)
					}
				case "NoNewPrivs":
					if value != "1" {
						found = append(found, "programs can gain privileges when they are run")
					}
				}
			}
			if flag, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || flag != 1 {
				found = append(found, "programs can gain privileges when they are run (no_new_privs is off)")
			}
			if err := unix.Setresuid(0, 0, 0); err == nil {
				found = append(found, "setresuid(0) works")
			}
			if len(found) > 0 {
				return broken("%s", strings.Join(found, "; "))
			}
			return held("user %d, no capabilities, none to be gained", unix.Getuid())
		},
	},
	{
		id:    "process/unix-sockets",
		tried: "connect to the host's unix sockets, with a file and without (abstract)",
		probe: func(p *prober) outcome {
			dial := func(address string) func() error {
				return func() error {
					conn, err := net.Dial("unix", address)
					if err == nil {
						conn.Close()
					}
					return err
				}
			}
			return denied(map[string]func() error{
				"with a file":     dial(p.facts.Socket),
				"by /proc/1/root": dial("/proc/1/root" + p.facts.Socket),
				"abstract":        dial("@" + p.facts.Abstract),
			})
		},
		judge: silent,
	},
	{
		id:    "process/shared-memory",
		tried: "find shared memory and message queues of the host",
		probe: func(p *prober) outcome {
			names, _ := filepath.Glob("/dev/shm/*")
			queues, _ := filepath.Glob("/dev/mqueue/*")
			segments, _ := readSome("/proc/sysvipc/shm", 64<<10)
			if n := bytes.Count(segments, []byte("\n")); n > 1 {
				if p.facts.Isolation.AtLeast(sandbox.SharedKernel) {
					return broken("%d shared memory segments are seen", n-1)
				}
				// The list is the host's. What counts is what is in them.
				if id, ok := attached(segments); ok {
					return broken("the host's shared memory segment %s can be read", id)
				}
			}
			if own := len(names) + len(queues); own > 0 {
				return broken("a new box finds %d things in /dev/shm and /dev/mqueue, such as %q", own, append(names, queues...)[0])
			}
			return held("none")
		},
	},
	{
		id:    "process/hostname",
		tried: "change the name of the machine",
		probe: func(*prober) outcome {
			return denied(map[string]func() error{
				"sethostname": func() error {
					name, err := os.Hostname()
					if err != nil {
						return err
					}
					return unix.Sethostname([]byte(name)) // the one it has
				},
			})
		},
	},
}

// attached tries to attach the segments of shared memory in a list as /proc/sysvipc/shm has
// it, and returns the first that could be.
func attached(list []byte) (id string, ok bool) {
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			continue // the heading
		}
		if data, err := unix.SysvShmAttach(n, 0, unix.SHM_RDONLY); err == nil {
			_ = unix.SysvShmDetach(data)
			return fields[1], true
		}
	}
	return "", false
}
