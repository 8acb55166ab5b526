package netjail_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailey-platform/bailey/egress"
	"github.com/bailey-platform/bailey/netjail"
)

// program skips a test without a program. Under CI that is a failure.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// shell prepares the thread in the box for programs: they see the jail's files where a
// box has them.
func (b *box) shell() {
	b.t.Helper()
	files, err := b.jail.Files(b.t.TempDir(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.inside(func() {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			b.t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			b.t.Error(err)
			return
		}
		for inBox, onHost := range files {
			target, err := filepath.EvalSymlinks(inBox)
			if err == nil {
				err = unix.Mount(onHost, target, "", unix.MS_BIND, "")
			}
			if err != nil {
				b.t.Errorf("%s: %v", inBox, err)
			}
		}
	})
	if b.t.Failed() {
		b.t.FailNow()
	}
}

// run runs a command of the shell in the box and returns what it prints.
func (b *box) run(command string) (string, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/bash", "-c", command)
	cmd.Dir = b.t.TempDir()
	cmd.Env = append(b.jail.Env(), "PATH="+os.Getenv("PATH"), "HOME="+cmd.Dir, "GIT_CONFIG_NOSYSTEM=1")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	// Started by the thread that is in the box.
	b.inside(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	return strings.TrimSpace(out.String()), err
}

func TestProgramsInABox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	api := &site{reply: func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s said %s", r.Method, r.Host, r.Header.Get("Authorization"))
	}}
	w.host("api.example", api)
	w.host("web.example", new(site))
	w.host("denied.example", new(site))
	db := w.address()
	w.name("db.example", db)
	w.serve(db, 22, greeter("SSH-2.0-test"))
	b := w.box(netjail.Options{
		Policy: limited(
			egress.Rule{Hosts: []string{"api.example", "web.example"}},
			egress.Rule{Name: "any protocol", Hosts: []string{"db.example"}, Ports: ports(22, 6379, 9418)},
		),
		Credentials: []netjail.Credential{{Name: "TOKEN", Hosts: []string{"api.example"}, Where: everywhere, Value: value(secret)}},
	})
	b.shell()

	for _, c := range []struct{ name, program, command, want string }{
		{"names", "getent", "getent ahosts web.example | head -1 | cut -d' ' -f1", "198.18.0."},
		{"a denied name", "getent", "getent hosts denied.example || echo refused", "refused"},
		{"curl", "curl", "curl -sS -m 10 http://web.example/", "hello"},
		{"curl to a denied name", "curl", "curl -sS -m 10 http://denied.example/", "Could not resolve"},
		{"curl to a metadata service", "curl", "curl -sS -m 10 http://169.254.169.254/ || echo refused", "refused"},
		{"curl to a denied address", "curl", "curl -sS -m 10 https://8.8.8.8/ || echo refused", "refused"},
		{"curl with a credential", "curl", `curl -sS -m 10 -H "Authorization: Bearer $TOKEN" https://api.example/`, "GET api.example said Bearer bailey_ph_"},
		{"curl with a user", "curl", `curl -sS -m 10 -u "user:$TOKEN" https://api.example/`, "GET api.example said Basic"},
		{"curl by HTTP/1.1", "curl", `curl -sS -m 10 --http1.1 -d "x=$TOKEN" https://api.example/`, "POST api.example said"},
		{"curl with a proxy of its own", "curl", "curl -sS -m 10 -x http://8.8.8.8:3128 http://web.example/ || echo refused", "refused"},
		{"Python", "python3", `python3 -c 'import os,urllib.request as u; r=u.Request("https://api.example/",headers={"Authorization":os.environ["TOKEN"]}); print(u.urlopen(r,timeout=10).read().decode())'`, "GET api.example said bailey_ph_"},
		{"wget", "wget", `wget -q -T 10 -O - --header "Authorization: $TOKEN" https://api.example/`, "GET api.example said bailey_ph_"},
		{"Node.js", "node", `node -e 'fetch("https://api.example/",{headers:{authorization:process.env.TOKEN}}).then(r=>r.text()).then(console.log)'`, "GET api.example said bailey_ph_"},
		{"a socket", "bash", "exec 3<>/dev/tcp/db.example/22; head -1 <&3", "SSH-2.0-test"},
		{"a socket to a denied port", "bash", "exec 3<>/dev/tcp/db.example/23; head -1 <&3", "reset by peer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program(t, c.program)
			out, err := b.run(c.command)
			if !strings.Contains(out, c.want) || strings.Contains(out, "s3cr3t") {
				t.Errorf("%s\n%s (%v)\nwant %q; refused: %v", c.command, out, err, c.want, b.jail.Denials())
			}
		})
	}
	for _, r := range api.all() {
		auth := r.Header.Get("Authorization")
		if strings.Contains(auth+r.Body, netjail.PlaceholderPrefix) {
			t.Errorf("a placeholder has arrived: %+v", r)
		}
	}
	t.Run("redis", func(t *testing.T) {
		server := program(t, "redis-server")
		program(t, "redis-cli")
		start(t, exec.Command(server, "--bind", db.String(), "--port", "6379", "--save", "", "--dir", t.TempDir(), "--protected-mode", "no"))
		until(t, "redis listens", func() bool { return listens(db.String() + ":6379") })
		if out, err := b.run("redis-cli -h db.example set a 1; redis-cli -h db.example incr a"); out != "OK\n2" {
			t.Errorf("%s, %v; refused: %v", out, err, b.jail.Denials())
		}
	})
	t.Run("git", func(t *testing.T) {
		git := program(t, "git")
		base := t.TempDir()
		setup := exec.Command("/bin/bash", "-c", "git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first && touch .git/git-daemon-export-ok")
		setup.Dir = base
		setup.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "HOME="+base)
		if out, err := setup.CombinedOutput(); err != nil {
			t.Fatalf("%s, %v", out, err)
		}
		daemon := exec.Command(git, "daemon", "--listen="+db.String(), "--base-path="+base, "--reuseaddr")
		daemon.Env = append(os.Environ(), "HOME="+base)
		start(t, daemon)
		until(t, "git listens", func() bool { return listens(db.String() + ":9418") })
		if out, err := b.run("git clone -q git://db.example/repo && git -C repo log --format=%s"); out != "first" {
			t.Errorf("%s, %v; refused: %v", out, err, b.jail.Denials())
		}
	})
}

// start runs a server until the test ends.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	// A group of its own, as it may start others.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	})
}

func listens(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
