package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/docker"
)

// fake is a daemon that is not there but for its version.
func fake(t *testing.T, handler http.Handler) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bf") // short, as a socket is made in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return "unix://" + socket
}

// version answers as a daemon of this version would, and fails all else.
func version(api, engine string) http.Handler {
	answer := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", api)
		w.Header().Set("Ostype", "linux")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
		case strings.HasSuffix(r.URL.Path, "/version"):
			answer(w, map[string]any{"Version": "1.2.3", "ApiVersion": api, "Components": []map[string]string{
				{"Name": engine, "Version": "1.2.3"}, {"Name": "runc", "Version": "1.1.11"}}})
		case strings.HasSuffix(r.URL.Path, "/info"):
			answer(w, map[string]any{"ServerVersion": "1.2.3", "Runtimes": map[string]any{"runc": map[string]string{"path": "runc"}}})
		default:
			w.WriteHeader(http.StatusInternalServerError)
			answer(w, map[string]string{"message": "the disk is on fire"})
		}
	})
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	closed := fake(t, http.NotFoundHandler())
	if err := os.Remove(strings.TrimPrefix(closed, "unix://")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		options docker.Options
		want    string
	}{
		"nobody listens":      {docker.Options{Kind: docker.Docker, Host: closed}, "start the daemon that listens at " + strings.TrimPrefix(closed, "unix://")},
		"podman is away":      {docker.Options{Kind: docker.Podman, Host: closed}, "name another socket (sandbox.engine)"},
		"somebody else":       {docker.Options{Kind: docker.Docker, Host: fake(t, http.NotFoundHandler())}, "daemon at unix"},
		"an old one":          {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.40", "Engine"))}, "docker 20.10"},
		"one older still":     {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.24", "Engine"))}, "not supported"},
		"podman for docker":   {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.41", "Podman Engine"))}, "is not docker"},
		"docker for podman":   {docker.Options{Kind: docker.Podman, Host: fake(t, version("1.41", "Engine"))}, "is not podman"},
		"no such runtime":     {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.41", "Engine")), Runtime: "runsc"}, `no runtime "runsc"`},
		"no image":            {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.41", "Engine"))}, "name an image"},
		"a daemon that fails": {docker.Options{Kind: docker.Docker, Host: fake(t, version("1.41", "Engine")), Image: "debian"}, "on fire"},
		"another host":        {docker.Options{Kind: docker.Docker, Host: "tcp://192.0.2.1:2375"}, "want unix:///"},
		"no kind":             {docker.Options{}, "of kind"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.options.Root = t.TempDir()
			_, err := docker.New(c.options).Check(t.Context())
			if u, ok := errors.AsType[*sandbox.Unavailable](err); !ok || !strings.Contains(u.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A daemon that does not answer keeps nobody waiting for longer than they want.
func TestSlowDaemon(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 16)
	host := fake(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	driver := docker.New(docker.Options{Kind: docker.Docker, Host: host, Root: t.TempDir()})
	if _, err := driver.Check(ctx); !errors.Is(err, context.Canceled) && (err == nil || !strings.Contains(err.Error(), "canceled")) {
		t.Error(err)
	}
}
