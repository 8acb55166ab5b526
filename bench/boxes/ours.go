package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/bailey-platform/bailey/sandbox"
	"github.com/bailey-platform/bailey/sandbox/agentbin"
	"github.com/bailey-platform/bailey/sandbox/docker"
	"github.com/bailey-platform/bailey/sandbox/gvisor"
	"github.com/bailey-platform/bailey/sandbox/landlock"
	"github.com/bailey-platform/bailey/sandbox/ns"
	"github.com/bailey-platform/bailey/sandbox/oci"
	"github.com/bailey-platform/bailey/tool"
)

// A stage is what the contenders share.
type stage struct {
	dir, root, npm string
	gvisor         string   // its own program
	missing        []string // why contenders are left out
	backends       []named  // ours
	closers        []func()
}

func (s *stage) close() {
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
}

func (s *stage) leaveOut(name string, why error) {
	s.missing = append(s.missing, fmt.Sprintf("%s: %.200s", name, strings.ReplaceAll(why.Error(), "\n", " ")))
}

// ours returns our backends that can be used here.
func (s *stage) ours(ctx context.Context) []contender {
	state := filepath.Join(s.dir, "bin")
	if err := os.Mkdir(state, 0o711); err != nil { // the users of boxes start the agent
		s.leaveOut("all of ours", err)
		return nil
	}
	agent, err := agentbin.Path(state)
	if err != nil {
		s.leaveOut("all of ours", err)
		return nil
	}
	engine, err := agentbin.Engine(state)
	if err != nil {
		s.leaveOut("all of ours", err)
		return nil
	}
	starter, err := agentbin.Launcher(state)
	if err != nil {
		s.leaveOut("all of ours", err)
		return nil
	}
	at := func(name string) string { return filepath.Join(s.dir, name) }
	var out []contender
	for _, o := range []struct {
		name, image string
		driver      sandbox.Driver
	}{
		{"bailey gvisor", s.root, gvisor.New(gvisor.Options{Root: at("gvisor"), Runtime: engine, Launcher: starter})},
		{"bailey ns", s.root, ns.New(ns.Options{Root: at("ns"), Launcher: starter})},
		{"bailey oci/crun", s.root, oci.New(oci.Options{Engine: "/usr/bin/crun", AllowOld: true, Root: at("crun"), Launcher: starter})},
		{"bailey oci/runc", s.root, oci.New(oci.Options{Engine: "/usr/sbin/runc", AllowOld: true, Root: at("runc"), Launcher: starter})},
		{"bailey docker", s.root, docker.New(docker.Options{Kind: docker.Docker, Image: s.root, Host: dockerHost(), Root: at("docker"), Launcher: starter})},
		{"bailey landlock", "", landlock.New(landlock.Options{Launcher: starter})},
	} {
		report, err := o.driver.Check(ctx)
		if err == nil {
			err = o.driver.Prepare(ctx, o.image)
		}
		if err != nil {
			s.leaveOut(o.name, err)
			continue
		}
		b := &ourBackend{stage: s, driver: o.driver, image: o.image, agent: agent}
		if report.Network {
			s.backends = append(s.backends, named{o.name, b})
		}
		out = append(out, contender{name: o.name, ours: true, isolation: string(report.Isolation), run: b.run, open: b.open})
	}
	return out
}

type named struct {
	name    string
	backend *ourBackend
}

type ourBackend struct {
	stage        *stage
	driver       sandbox.Driver
	image, agent string
}

var boxes atomic.Int64

// start starts a box with the agent in it.
func (b *ourBackend) start(ctx context.Context, network sandbox.Network, files map[string]string) (*ourBox, error) {
	id := fmt.Sprintf("bench-%d", boxes.Add(1))
	workDir := filepath.Join(b.stage.dir, "work", id)
	if err := os.MkdirAll(workDir, 0o755); err != nil {
		return nil, err
	}
	box, err := b.driver.Start(ctx, sandbox.Spec{
		ID: id, Image: b.image, WorkDir: workDir, Agent: b.agent, Network: network, Files: files,
		Command: []string{sandbox.AgentPath, "tool", "serve", "--workdir", sandbox.WorkPath},
		Env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + sandbox.WorkPath},
	})
	if err != nil {
		return nil, err
	}
	stdin, stdout := box.Stdio()
	client, err := tool.Dial(ctx, stdin, stdout)
	if err != nil {
		_ = box.Stop(context.WithoutCancel(ctx))
		return nil, err
	}
	return &ourBox{box, client}, nil
}

func (b *ourBackend) run(ctx context.Context) error {
	box, err := b.start(ctx, nil, nil)
	if err != nil {
		return err
	}
	// Its end is not part of what is measured of the others either: they report when
	// the output is there.
	err = box.call(ctx)
	go box.close()
	return err
}

func (b *ourBackend) open(ctx context.Context) (opened, error) { return b.start(ctx, nil, nil) }

type ourBox struct {
	box    sandbox.Box
	client *tool.Client
}

func (b *ourBox) call(ctx context.Context) error {
	out, err := b.bash(ctx, "echo hi")
	if err == nil && !strings.Contains(out, "hi") {
		err = fmt.Errorf("it said %.80q", out)
	}
	return err
}

func (b *ourBox) bash(ctx context.Context, command string) (string, error) {
	input, err := json.Marshal(map[string]string{"command": command})
	if err != nil {
		return "", err
	}
	result, err := b.client.Call(ctx, tool.Call{Tool: "bash", Input: input})
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(result.Content)
	if result.IsError {
		err = fmt.Errorf("%.200s", text)
	}
	return string(text), err
}

func (b *ourBox) close() {
	_ = b.client.Close()
	_ = b.box.Stop(context.Background())
}

func (b *ourBox) freeze(ctx context.Context) error {
	f, ok := b.box.(sandbox.Freezer)
	if !ok {
		return fmt.Errorf("it cannot be frozen")
	}
	return f.Freeze(ctx)
}

func (b *ourBox) thaw(ctx context.Context) error { return b.box.(sandbox.Freezer).Thaw(ctx) }
