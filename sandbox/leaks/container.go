package leaks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/bailey-platform/bailey/sandbox"
)

// daemons are where container daemons usually listen, by the programs that speak to them.
// A daemon that listens elsewhere is not asked.
var daemons = map[string]string{
	"/var/run/docker.sock":           "docker",
	"/run/podman/podman.sock":        "podman",
	userSocket("docker.sock"):        "docker",
	userSocket("podman/podman.sock"): "podman",
}

func userSocket(name string) string { return fmt.Sprintf("/run/user/%d/%s", os.Geteuid(), name) }

// The labels of containers that are boxes: the directory of the driver they belong to,
// and the box.
const (
	rootLabel = "io.bailey.root"
	boxLabel  = "io.bailey.box"
)

const (
	daemonPatience = 10 * time.Second
	daemonMax      = 16 << 20 // bytes of an answer
)

// containers finds containers of boxes whose worker is gone.
func containers() ([]Leak, error) {
	var found []Leak
	var errs []error
	for socket, program := range daemons {
		leaks, err := containersOf(socket, program)
		found = append(found, leaks...)
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// containersOf asks the daemon at a socket. One that nobody answers at has none.
func containersOf(socket, program string) ([]Leak, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, nil
	}
	client := daemonClient(socket)
	filters := url.QueryEscape(`{"label":["` + rootLabel + `"]}`)
	res, err := client.Get("http://daemon/containers/json?all=1&filters=" + filters)
	var refused *net.OpError
	if errors.As(err, &refused) && refused.Op == "dial" {
		return nil, nil // or not ours to ask
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for containers: %w", program, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s for containers: HTTP %d", program, res.StatusCode)
	}
	var list []struct {
		ID     string `json:"Id"`
		Names  []string
		Labels map[string]string
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, daemonMax)).Decode(&list); err != nil {
		return nil, fmt.Errorf("ask %s for containers: %w", program, err)
	}
	var found []Leak
	for _, c := range list {
		root := c.Labels[rootLabel]
		if root == "" || sandbox.Locked(filepath.Join(root, "lock")) {
			continue
		}
		found = append(found, Leak{Kind: "container", Name: fmt.Sprintf("%.12s of %s, of boxes in %s", c.ID, program, root), Remedy: fmt.Sprintf("%s rm -f %.12s", program, c.ID),
			Box: c.Labels[boxLabel], Driver: driverIn(root), remove: func(p proof) error { return p.removeContainer(socket, program, c.ID, root) }})
	}
	return found, nil
}

// removeContainer removes a container of a driver that nobody is, which it sees to that
// nobody becomes meanwhile. A worker that is in a container itself may have its directory
// where there is none here, or another's.
func (p proof) removeContainer(socket, program, id, root string) error {
	name := filepath.Join(root, "lock")
	lock, err := sandbox.Lock(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer lock.Close() // a nil one only says so
	if p.locks[name] || err != nil && !p.sure {
		return errUnproven
	}
	req, err := http.NewRequest(http.MethodDelete, "http://daemon/containers/"+url.PathEscape(id)+"?force=1&v=1", nil)
	if err != nil {
		return err
	}
	res, err := daemonClient(socket).Do(req)
	if err != nil {
		return fmt.Errorf("have %s remove container %.12s: %w", program, id, err)
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusBadRequest && res.StatusCode != http.StatusNotFound {
		return fmt.Errorf("have %s remove container %.12s: HTTP %d", program, id, res.StatusCode)
	}
	return nil
}

func daemonClient(socket string) *http.Client {
	return &http.Client{Timeout: daemonPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}
