package leaks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// rootLabel is on containers that are boxes: the directory of the driver they belong to.
const rootLabel = "io.bailey.root"

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
	client := &http.Client{Timeout: daemonPatience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
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
		found = append(found, Leak{"container", fmt.Sprintf("%.12s of %s, of boxes in %s", c.ID, program, root), fmt.Sprintf("%s rm -f %.12s", program, c.ID)})
	}
	return found, nil
}
