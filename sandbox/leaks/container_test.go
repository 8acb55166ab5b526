package leaks

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A worker that was killed left containers at its daemon which nobody found.
func TestContainersOfAWorkerThatIsGone(t *testing.T) {
	t.Parallel()
	used, left, socket := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "d.sock")
	lock, err := os.Create(filepath.Join(used, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	daemon := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.FormValue("filters"), rootLabel) || r.FormValue("all") != "1" {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprintf(w, `[{"Id":"aaa","Labels":{%[1]q:%[2]q}},{"Id":"bbb","Labels":{%[1]q:%[3]q}}]`, rootLabel, used, left)
	})}
	go daemon.Serve(l)
	defer daemon.Close()
	got, err := containersOf(socket, "docker")
	if err != nil || len(got) != 1 || !strings.Contains(got[0].Name, left) || got[0].Remedy != "docker rm -f bbb" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := containersOf(filepath.Join(left, "nobody.sock"), "docker"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
