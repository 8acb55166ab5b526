package ns_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/tool"
)

const attackerPath = "/opt/attacker"

// TestAttacks tries the ways out of boxes like these that have been found, a test each.
// What any backend must hold is in sandboxtest and sandbox/verify.
func TestAttacks(t *testing.T) {
	needLauncher(t)
	t.Parallel()
	root := t.TempDir()
	d := open(root)
	t.Run("all", func(t *testing.T) {
		for name, attack := range map[string]func(*testing.T, *ns.Driver){
			"KernelSurface":         attackKernel,
			"CallsOf32Bits":         attack32Bits,
			"FirstProcess":          attackInit,
			"AgentExecutable":       attackAgent,
			"SetuidPrograms":        attackSetuid,
			"ProcAndSys":            attackProc,
			"MountsAndPaths":        attackMounts,
			"InheritedDescriptors":  attackDescriptors,
			"LinksOutOfWorkFolder":  attackLinks,
			"HostileImage":          attackImage,
			"FilesWithoutEnd":       attackInodes,
			"SocketsOfTheHost":      attackSockets,
			"SharedMemoryOfTheHost": attackSharedMemory,
			"OtherBoxes":            attackOtherBoxes,
			"Terminals":             attackTerminals,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				attack(t, d)
			})
		}
	})
	nothingLeft(t, root)
}

func TestAttacksAsOrdinaryUser(t *testing.T) { asOrdinary(t, "TestAttacks") }

// attackerFile is where the attacker is on the host.
func attackerFile() string { return filepath.Join(filepath.Dir(agentPath), "attacker") }

// attacked starts a box with an agent and the attacker in it.
func attacked(t *testing.T, d *ns.Driver, change func(*sandbox.Spec)) (sandbox.Box, func(command string) (string, bool)) {
	t.Helper()
	spec := benchSpec(t)
	spec.Network = nil
	spec.Files = map[string]string{attackerPath: attackerFile()}
	spec.Limits.MemoryBytes = 512 << 20
	if change != nil {
		change(&spec)
	}
	box, client, err := boot(d, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		if err := box.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return box, func(command string) (string, bool) {
		t.Helper()
		input, err := json.Marshal(map[string]string{"command": command})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		result, err := client.Call(ctx, tool.Call{Tool: "bash", Input: input, TimeoutMS: 50_000})
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		var all strings.Builder
		for _, raw := range result.Content {
			var block struct{ Text string }
			if err := json.Unmarshal(raw, &block); err != nil {
				t.Fatal(err)
			}
			all.WriteString(block.Text)
		}
		return strings.TrimSpace(all.String()), result.IsError
	}
}

// refused runs commands none of which may succeed.
func refused(t *testing.T, run func(string) (string, bool), commands ...string) {
	t.Helper()
	for _, command := range commands {
		if text, failed := run(command); !failed {
			t.Errorf("%s: %s", command, text)
		}
	}
}

// must runs a command that has to succeed.
func must(t *testing.T, run func(string) (string, bool), command string) string {
	t.Helper()
	text, failed := run(command)
	if failed {
		t.Fatalf("%s: %s", command, text)
	}
	return text
}

// Calls that programs in a box have no use for never reach the kernel.
func attackKernel(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	lines := strings.Split(must(t, run, attackerPath), "\n")
	if len(lines) < 80 {
		t.Errorf("only %d attempts were made", len(lines))
	}
	// What is not here fails with EPERM.
	others := map[string]string{
		"clone3": "ENOSYS", "io_uring_setup": "ENOSYS", "x32": "ENOSYS",
		"mknod-disk": "EPERM EACCES", "mknod-mem": "EPERM EACCES", "mknod-whiteout": "EPERM EACCES",
		"socket-packet": "EAFNOSUPPORT", "socket-vsock": "EAFNOSUPPORT", "socket-alg": "EAFNOSUPPORT",
		"socket-key": "EAFNOSUPPORT", "socket-bluetooth": "EAFNOSUPPORT", "socket-tipc": "EAFNOSUPPORT",
		"socket-rds": "EAFNOSUPPORT", "socket-xdp": "EAFNOSUPPORT", "socket-high-bits": "EAFNOSUPPORT",
		"socket-netfilter": "EPROTONOSUPPORT", "socket-audit": "EPROTONOSUPPORT", "socket-uevent": "EPROTONOSUPPORT",
		"socket-ping": "EPROTONOSUPPORT", "socket-sctp": "EPROTONOSUPPORT",
		// In a user namespace of one user, these have no numbers.
		"setuid": "EPERM EINVAL", "setgid": "EPERM EINVAL",
	}
	for _, line := range lines {
		name, got, _ := strings.Cut(line, " ")
		want := "EPERM"
		if other, ok := others[name]; ok {
			want = other
		}
		if !strings.Contains(" "+want+" ", " "+got+" ") {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// The second way into the kernel, with numbers of its own, ends who takes it.
func attack32Bits(t *testing.T, d *ns.Driver) {
	if unixArch() != "x86_64" {
		t.Skip("this architecture has no other way in that needs no program of its own")
	}
	_, run := attacked(t, d, nil)
	if text, failed := run(attackerPath + " foreign; echo status $?"); !strings.Contains(text, "status 159") {
		t.Errorf("failed %t: %s", failed, text)
	}
}

func unixArch() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Machine[:])
}

// The first process, which is the host's executable and has more rights, is out of
// reach, and so is the agent from its tools.
func attackInit(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	agent := must(t, run, "echo $PPID")
	for _, pid := range []string{"1", agent} {
		for _, file := range []string{"mem", "environ", "maps", "auxv", "io", "stack", "syscall", "fd/0", "fd/1", "fd/3", "fd/4", "fdinfo/3"} {
			refused(t, run, fmt.Sprintf("head -c 1 /proc/%s/%s", pid, file))
		}
		for _, link := range []string{"root", "cwd", "exe", "ns/mnt", "ns/user", "ns/net"} {
			refused(t, run, fmt.Sprintf("readlink /proc/%s/%s", pid, link))
		}
		refused(t, run, fmt.Sprintf("ls /proc/%s/root/", pid), fmt.Sprintf("ls /proc/%s/cwd/", pid),
			fmt.Sprintf("ls /proc/%s/map_files/ && ls -l /proc/%[1]s/map_files/ | grep /", pid),
			fmt.Sprintf("echo x >/proc/%s/mem", pid), fmt.Sprintf("echo x >/proc/%s/exe", pid),
			fmt.Sprintf("echo 0 >/proc/%s/oom_score_adj", pid), fmt.Sprintf("echo 0 >/proc/%s/clear_refs", pid))
	}
	if text, _ := run("cat /proc/1/cmdline | tr '\\0' ' '"); strings.Contains(text, "/") {
		t.Errorf("its command line names a path of the host: %s", text)
	}
	for _, signal := range []string{"KILL", "STOP", "TERM", "INT", "HUP", "QUIT", "USR1", "PIPE", "ALRM", "SEGV"} {
		run("kill -" + signal + " 1")
	}
	if text := must(t, run, "echo alive"); text != "alive" {
		t.Error(text)
	}
}

// The agent is a file of the host's that every box shares.
func attackAgent(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	before, err := os.ReadFile(agentPath)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, run, "echo x >>"+sandbox.AgentPath, "rm -f "+sandbox.AgentPath, "mv "+sandbox.AgentPath+" /tmp/a",
		"chmod 777 "+sandbox.AgentPath, "ln "+sandbox.AgentPath+" /tmp/a", "truncate -s 0 "+sandbox.AgentPath,
		"touch "+sandbox.AgentPath, "setfattr -n user.x -v y "+sandbox.AgentPath,
		sandbox.AgentPath+" tool serve & echo x >/proc/$!/exe")
	if after, err := os.ReadFile(agentPath); err != nil || string(after) != string(before) {
		t.Errorf("it has changed (%v)", err)
	}
}

func attackSetuid(t *testing.T, d *ns.Driver) {
	work := t.TempDir()
	_, run := attacked(t, d, func(spec *sandbox.Spec) { spec.WorkDir = work })
	must(t, run, "cp /usr/bin/id mine && chmod 6755 mine")
	if text := must(t, run, "./mine -u; ./mine -g"); text != fmt.Sprintf("%d\n%[1]d", sandbox.User) {
		t.Errorf("a program of one's own with the bit runs as %s", text)
	}
	if info, err := os.Stat(filepath.Join(work, "mine")); err != nil || info.Sys() == nil {
		t.Error(err)
	}
	for _, program := range []string{"su -c id", "mount -t tmpfs x /mnt", "sudo -n id", "pkexec id", "unshare -Ur id"} {
		refused(t, run, "setsid -w "+program+" </dev/null") // without a terminal to ask on
	}
	status := must(t, run, "cat /proc/self/status")
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000"} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
}

func attackProc(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	for _, file := range []string{"kcore", "kmsg", "keys", "key-users", "kallsyms", "timer_list", "cmdline", "modules", "sysrq-trigger"} {
		if text, _ := run("head -c 100 /proc/" + file); text != "" && text != "(no output)" && !strings.Contains(text, "No such file") && !strings.Contains(text, "denied") {
			t.Errorf("/proc/%s: %s", file, text)
		}
	}
	for _, dir := range []string{"acpi", "bus", "driver", "fs", "irq", "scsi"} {
		if text, _ := run("ls /proc/" + dir); text != "" && text != "(no output)" && !strings.Contains(text, "No such file") {
			t.Errorf("/proc/%s: %s", dir, text)
		}
	}
	refused(t, run, "echo b >/proc/sysrq-trigger", "echo x >/proc/sys/kernel/core_pattern", "echo x >/proc/sys/kernel/modprobe",
		"echo 1 >/proc/sys/net/ipv4/ip_forward", "echo x >/proc/sys/kernel/hostname", "echo 0 >/proc/sys/kernel/ns_last_pid",
		"echo 1 >/proc/sys/vm/drop_caches", "ls /sys/kernel", "ls /sys/fs", "ls /sys/class", "ls /sys/firmware",
		"echo 0 >/proc/self/uid_map", "echo deny >/proc/self/setgroups", "echo -1000 >/proc/self/oom_score_adj",
		"grep -v '^ *0 *[0-9]* *[0-9]*$\\|^ *61000' /proc/self/uid_map")
	if text := must(t, run, "cat /proc/self/oom_score_adj"); text != "500" {
		t.Errorf("the kernel's preference among the killed is %s", text)
	}
	// What is honest of the machine.
	if text := must(t, run, "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online"); !strings.Contains(text, fmt.Sprint(512<<10)) {
		t.Error(text)
	}
	if text := must(t, run, "cut -d: -f3 /proc/self/cgroup | sort -u"); text != "/" {
		t.Errorf("control groups of the host are named: %s", text)
	}
}

// Nothing is mounted but what a box is to have, and of the host's paths only those are
// named that the kernel names for what is mounted.
func attackMounts(t *testing.T, d *ns.Driver) {
	work := t.TempDir()
	_, run := attacked(t, d, func(spec *sandbox.Spec) { spec.WorkDir = work })
	allowed := map[string]bool{
		"/": true, "/proc": true, "/dev": true, "/usr": true, "/sys": true, sandbox.WorkPath: true, sandbox.AgentPath: true, attackerPath: true,
	}
	for line := range strings.Lines(must(t, run, "cat /proc/self/mountinfo")) {
		fields := strings.Fields(line)
		source, target, options := fields[3], fields[4], ","+fields[5]+","
		known := allowed[target] || strings.HasPrefix(target, "/proc/") || strings.HasPrefix(target, "/dev/") ||
			target == "/bin" || target == "/sbin" || strings.HasPrefix(target, "/lib")
		if !known {
			t.Errorf("mounted: %s", line)
		}
		device := strings.HasPrefix(target, "/dev")
		if !device && (!strings.Contains(options, ",nosuid,") || !strings.Contains(options, ",nodev,")) {
			t.Errorf("programs gain rights, or devices work: %s", line)
		}
		if target != sandbox.WorkPath && strings.Contains(source, filepath.Base(work)) || strings.Contains(line, "lowerdir=/") {
			t.Errorf("a path of the host is named: %s", line)
		}
		if (target == "/usr" || target == sandbox.AgentPath || target == "/dev" || target == "/proc/sys") && !strings.Contains(options, ",ro,") {
			t.Errorf("it can be written to: %s", line)
		}
	}
	for _, alias := range []string{"/proc/self/root", "/proc/thread-self/root", "/proc/$$/root", "/proc/self/cwd/..", "/dev/fd/../root"} {
		if text := must(t, run, "ls "+alias+"/ | sort | tr '\\n' ' '"); text != must(t, run, "ls / | sort | tr '\\n' ' '") {
			t.Errorf("%s is another root: %s", alias, text)
		}
	}
	refused(t, run, "ls /../../tmp/bailey*", "cd "+sandbox.WorkPath+" && ls ../"+filepath.Base(work), "echo x >/dev/x", "echo x >/dev/sda")
	if os.Geteuid() == 0 { // or else the box's root is its user's
		refused(t, run, "echo x >/x", "mkdir /y", "echo x >/etc/x")
	}
	// The loader is no way past what may not be run.
	refused(t, run, "cp /usr/bin/id /dev/shm/id && chmod 755 /dev/shm/id && /dev/shm/id")
}

// The box's command has its streams and nothing else.
func attackDescriptors(t *testing.T, d *ns.Driver) {
	spec := benchSpec(t)
	spec.Command = []string{"/bin/ls", "-l", "/proc/self/fd"}
	box, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer box.Stop(context.Background())
	_, stdout := box.Stdio()
	out, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	// The fourth is the directory that it lists.
	if strings.Count(string(out), " -> ") != 4 || strings.Count(string(out), " -> pipe:") != 3 || !strings.Contains(string(out), " 3 -> /proc/") {
		t.Errorf("it has\n%s", out)
	}
}

// Links lead where they say in the box, and to nothing of the host.
func attackLinks(t *testing.T, d *ns.Driver) {
	outer := t.TempDir()
	if err := os.WriteFile(filepath.Join(outer, "secret"), []byte("a-host-secret"), 0o666); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.Symlink(outer, filepath.Join(work, "out")); err != nil {
		t.Fatal(err)
	}
	_, run := attacked(t, d, func(spec *sandbox.Spec) { spec.WorkDir = work })
	refused(t, run, "cat out/secret", "echo x >out/secret", "ln -s "+outer+" b && cat b/secret", "cat ../"+filepath.Base(outer)+"/secret",
		"ln /usr/bin/id hard", "ln /etc/passwd hard", "cd out")
	if got, err := os.ReadFile(filepath.Join(outer, "secret")); err != nil || string(got) != "a-host-secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// An image whose directories are links to places of the host has nothing made or
// mounted there.
func attackImage(t *testing.T, d *ns.Driver) {
	victim, image := t.TempDir(), t.TempDir()
	for _, name := range []string{"etc", "usr", "data", "shared"} {
		var err error
		if name == "usr" || name == "etc" {
			err = os.Mkdir(filepath.Join(image, name), 0o755)
		} else {
			err = os.Symlink(victim, filepath.Join(image, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// A static shell is what the agent's tools need; here the attacker stands in.
	if err := os.Mkdir(filepath.Join(image, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(filepath.Dir(agentPath), "attacker"))
	if err == nil {
		err = os.WriteFile(filepath.Join(image, "bin/bash"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	shared := t.TempDir()
	for name, change := range map[string]func(*sandbox.Spec){
		"a directory beneath": func(spec *sandbox.Spec) { spec.ReadOnly = map[string]string{"/data/inner/deep": shared} },
		"a file beneath":      func(spec *sandbox.Spec) { spec.Files = map[string]string{"/data/file": agentPath} },
		"itself":              func(spec *sandbox.Spec) { spec.ReadOnly = map[string]string{"/shared": shared} },
	} {
		spec := benchSpec(t)
		spec.Network = nil
		spec.Image = image
		spec.Command = []string{"/bin/bash"}
		change(&spec)
		box, err := d.Start(t.Context(), spec)
		if err == nil {
			err = box.Stop(context.Background())
			t.Errorf("%s: it started", name)
		}
		t.Logf("%s: %v", name, err)
		if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
			t.Errorf("%s: on the host there are now %v, %v", name, entries, err)
		}
	}
}

// Empty files run out too.
func attackInodes(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, func(spec *sandbox.Spec) { spec.Limits.DiskBytes = 16 << 20 })
	text, failed := run("cd /tmp && (for i in $(seq 20000); do : >f$i || exit 1; done)")
	if !failed || !strings.Contains(text, "No space left") {
		t.Errorf("failed %t: %.200s", failed, text)
	}
	must(t, run, "cd /tmp && rm -f f1* && echo x >y")
}

// Neither sockets with a name in no file system nor the host's own are there.
func attackSockets(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	if text := must(t, run, "tail -n +2 /proc/net/unix | wc -l; tail -n +2 /proc/net/tcp | wc -l; tail -n +3 /proc/net/dev | wc -l"); text != "0\n0\n1" {
		t.Errorf("sockets and interfaces: %s", text)
	}
	refused(t, run, "ls /run/*", "ls /var/run/docker.sock", "ls /tmp/.X11-unix")
}

func attackSharedMemory(t *testing.T, d *ns.Driver) {
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o666)
	if err != nil {
		t.Skip(err)
	}
	defer unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	_, run := attacked(t, d, nil)
	if text := must(t, run, "tail -n +2 /proc/sysvipc/shm | wc -l"); text != "0" {
		t.Errorf("%s segments are seen", text)
	}
}

// Boxes know nothing of each other, and as root are of different users.
func attackOtherBoxes(t *testing.T, d *ns.Driver) {
	_, first := attacked(t, d, nil)
	_, second := attacked(t, d, nil)
	must(t, first, "sleep 1000 & echo one >/tmp/one; echo $! >/dev/shm/one")
	refused(t, second, "cat /tmp/one", "cat /dev/shm/one", "pgrep sleep", "pkill sleep")
	ids := make(map[string]bool)
	for _, run := range []func(string) (string, bool){first, second} {
		ids[must(t, run, "cat /proc/self/uid_map")] = true
	}
	if os.Geteuid() == 0 && len(ids) != 2 {
		t.Errorf("both have the users %v", ids)
	}
}

// Who shares a terminal cannot type on it for another.
func attackTerminals(t *testing.T, d *ns.Driver) {
	_, run := attacked(t, d, nil)
	refused(t, run, "echo x >/dev/console", "head -c 1 /dev/tty1", "head -c 1 /dev/ttyS0", "head -c 1 /dev/mem", "head -c 1 /dev/kmsg",
		"head -c 1 /dev/fuse", "head -c 1 /dev/kvm", "head -c 1 /dev/net/tun", "head -c 1 /dev/vda", "ls /dev/mapper")
	// But for the one that the shell has of the agent's.
	if text := must(t, run, "ls /dev/pts | tr '\\n' ' '"); text != "0 ptmx" && text != "ptmx" {
		t.Errorf("terminals: %s", text)
	}
}
