# Needs Go and Linux. `make help` says what there is.

# The same flags for checking and building, so that the large dependencies are
# compiled once. Only the race detector needs C.
export CGO_ENABLED = 0
export GOFLAGS += -trimpath

STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT   = go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

.PHONY: help demo build programs image test test-cgroup2 lint fuzz bench bench-sandbox bench-tunnel clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: ## play one whole session offline, show it and check it (ARGS=--keep leaves it running)
	go run . demo $(ARGS)

# The version is the repository's own; the toolchain writes it into the binary. The
# programs that boxes are made of are carried along, each by itself, as small ones
# start sooner: gVisor in half the time.
build: programs ## bin/bailey, static and complete
	go build -ldflags '-s -w' -tags 'slim embedagent embedlauncher embedengine' -o bin/bailey .

programs:
	go build -ldflags '-s -w' -o sandbox/agentbin/boxagent ./tool/agent/boxagent
	go build -ldflags '-s -w' -o sandbox/agentbin/boxlauncher ./sandbox/launcher/boxlauncher
	go build -ldflags '-s -w' -o sandbox/agentbin/runsc ./sandbox/gvisor/engine/runsc

# Where the image's files are laid out, what it is called, and what builds it.
IMAGE_ROOT = bin/image
IMAGE = bailey:$(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
IMAGE_BUILDER = $(shell command -v podman || echo docker)
CA_CERTIFICATES = /etc/ssl/certs/ca-certificates.crt

image: ## a small container image for gateways, edges and servers (docker or podman; IMAGE=name:tag)
	rm -rf $(IMAGE_ROOT)
	mkdir -p $(IMAGE_ROOT)/usr/bin $(IMAGE_ROOT)/etc/ssl/certs $(IMAGE_ROOT)/var/lib/bailey
	mkdir -m 1777 $(IMAGE_ROOT)/tmp
	chmod 0777 $(IMAGE_ROOT)/var/lib/bailey
	go build -ldflags '-s -w' -tags slim -o $(IMAGE_ROOT)/usr/bin/bailey .
	cp $(CA_CERTIFICATES) $(IMAGE_ROOT)/etc/ssl/certs/
	$(IMAGE_BUILDER) build -t $(IMAGE) -f Containerfile $(IMAGE_ROOT)

TEST_ARGS =

test: lint ## everything CI runs: lint, then all tests with the race detector, on PostgreSQL too
	CGO_ENABLED=1 .ci/with-postgres go test -race -shuffle=on -timeout 20m $(TEST_ARGS) ./...

test-cgroup2: ## control groups of version 2, in a virtual machine (Debian with qemu-system-x86; a minute)
	.ci/cgroup2

lint: ## gofmt, vet, staticcheck, govulncheck
	@echo gofmt -l .
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "not formatted: $$unformatted"; exit 1; }
	go vet ./...
	$(STATICCHECK) ./...
	.ci/vulncheck

FUZZTIME = 10s

fuzz: ## every fuzz target, FUZZTIME=10s each
	.ci/fuzz $(FUZZTIME)

BENCH = .
COUNT = 6

bench: ## all benchmarks, COUNT=6 times, BENCH=. of them; figures and a summary in bench/out
	@mkdir -p bench/out
	.ci/with-postgres --durable go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) -timeout 2h -p 1 \
		$$(go list -f '{{.Dir}}' ./... | xargs -I{} sh -c 'grep -qs "^func Benchmark" {}/*_test.go && echo {}') \
		> bench/out/latest.txt || { cat bench/out/latest.txt; exit 1; }
	$(BENCHSTAT) bench/out/latest.txt | tee bench/out/summary.txt

# A root folder of Debian's, made once, and the contenders from npm.
BOXES = bench/out/boxes
BOXES_ARGS =

bench-sandbox: programs ## our sandboxes beside docker, podman, runc, crun, bubblewrap and others (root; BOXES_ARGS=-h)
	@mkdir -p $(BOXES)
	test -x $(BOXES)/root/bin/sh || debootstrap --variant=minbase bookworm $(BOXES)/root
	test -d $(BOXES)/npm/node_modules || npm install --silent --prefix $(BOXES)/npm @anthropic-ai/sandbox-runtime @openai/codex
	go build -ldflags '-s -w' -tags 'slim embedagent embedlauncher embedengine' -o $(BOXES)/boxes ./bench/boxes
	go build -ldflags '-s -w' -o $(BOXES)/runsc gvisor.dev/gvisor/runsc
	$(BOXES)/boxes -root $(BOXES)/root -npm $(BOXES)/npm -runsc $(BOXES)/runsc $(BOXES_ARGS) | tee $(BOXES)/latest.txt

TUNNEL = bench/out/tunnel
TUNNEL_ARGS =

bench-tunnel: ## our tunnel beside the direct way, ssh -R, frp and a TLS chain of haproxy (TUNNEL_ARGS=-h)
	@mkdir -p $(TUNNEL)
	go build -o $(TUNNEL)/tunnel ./bench/tunnel
	$(TUNNEL)/tunnel $(TUNNEL_ARGS) | tee $(TUNNEL)/latest.txt

clean: ## remove what the other targets made
	rm -rf bin bench/out sandbox/agentbin/boxagent sandbox/agentbin/boxlauncher sandbox/agentbin/runsc
