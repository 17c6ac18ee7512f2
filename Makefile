# fastbr. Needs Go and make; every other tool is installed from Debian by the
# target that needs it (see `make deps`). Targets that touch the kernel use sudo
# when not run by root.

SHELL   := /bin/bash
export PATH := $(PATH):/usr/local/go/bin
GO      ?= go
ROOT    := $(filter 0,$(shell id -u))
SUDO    := $(if $(ROOT),,sudo -E env "PATH=$(PATH)")
DEPS    := .ci/deps
BIN     := bin/fastbr
PREFIX  ?= /usr/local
# What the tests of the front ends for container engines need.
FIREWALLS := ufw firewall-cmd dbus-daemon
ENGINES := dockerd containerd podman runc busybox /usr/lib/cni/host-local ipvsadm keepalived
# What the test of several hosts needs.
ROUTERS := /usr/lib/frr/zebra
# What an emulated machine takes (.ci/vm).
VM := qemu-system-x86_64 depmod cpio xz busybox
CLANG_FORMAT ?= clang-format-19

# No target, and nothing it starts, may work on the machine's own network.
export FASTBR_REFUSE_NETNS := /proc/1/ns/net

# Build, vet and the tests of labs share what is compiled. The race detector needs cgo,
# and has compiled packages of its own.
export CGO_ENABLED := 0
RACE    := $(if $(shell command -v gcc),-race)
# The packages of fastbr, with the race detector. The longest start first.
TESTS   ?= ./datapath ./ctl ./cmd/fastbr $(shell $(GO) list ./... | grep -v /test/)
# Tests that drive the binary in labs: the detector would watch their code, not fastbr's.
LABS    ?= ./test/e2e ./test/...
# Above the slowest package by a factor of three; not a performance limit.
TIMEOUT ?= 45m
# Packages at a time, of those above and of these: they wait for the kernel to take devices
# away.
PACKAGES ?= $(shell nproc)
# Tests at a time in a package, twice as many as CPUs: in their labs they wait for
# timers, carriers and the kernel's readers more than they work.
PARALLEL ?= $(shell expr 2 '*' $$(nproc))
GOTEST  = FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test -vet=off -p $(PACKAGES) -parallel $(PARALLEL) -timeout $(TIMEOUT) $(if $(ROOT),,-exec '$(SUDO)')

BPF_SOURCES = $(shell find bpf -path bpf/include -prune -o -name '*.[ch]' -print)

# A static binary without symbols: less to map and to fault in at each start.
BUILD = $(GO) build -ldflags='-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)'

# A tarball has no history: git has written its commit into packaging/commit (export-subst).
COMMIT  ?= $(shell git describe --always --abbrev=40 --match= --dirty 2>/dev/null || grep -v '\$$' packaging/commit)
# The last tag, or 0 with the commit for what was never tagged.
VERSION ?= $(shell git describe --tags --match 'v*' 2>/dev/null | sed 's/^v//' | grep . || echo 0.0.0+$(shell echo $(COMMIT) | cut -c1-7))

# Where the manual pages are written.
PAGES := bin/man

# How long `make fuzz` looks for each target.
FUZZTIME ?= 30s

# How long `make churn` starts and removes containers.
CHURN ?= 10m

.DEFAULT_GOAL := help
.PHONY: help demo test test-code test-labs fuzz stress churn kernels lint generate bench bench-full bench-smoke bench-start score deps build man install uninstall deb

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: build ## a throw-away host with two containers: traffic, counters, fastbr beside a plain bridge
	@$(DEPS) iperf3 nft iptables
	@$(SUDO) $(BIN) demo

test: build ## every test: vet, pure, programs, namespaces with real traffic, command line
	@$(DEPS) iperf3 nft iptables conntrack brctl ethtool ip nsenter promtool prometheus $(ENGINES) $(FIREWALLS) $(ROUTERS)
	$(GO) vet ./...
	$(if $(RACE),,@echo '### no gcc: the tests run WITHOUT the race detector')
	@$(MAKE) --no-print-directory -j 2 test-code test-labs
	@echo '### make test: passed$(if $(RACE),$(comma) race detector on,$(comma) race detector OFF)'

# The detector makes a walk beside the model five times as long, so that is a short one.
test-code: build
	FASTBR_MODEL_STEPS=$${FASTBR_MODEL_STEPS:-20000} $(if $(RACE),CGO_ENABLED=1 )$(GOTEST) $(RACE) $(TESTS)

test-labs: build
	$(if $(LABS),$(GOTEST) $(LABS))
	$(GOTEST) -run '^TestProgramsEqualModel$$' ./datapath
comma := ,

fuzz: build ## any bytes into the programs, any frames through a lab, FUZZTIME (30s) for each target
	for target in FuzzPortIn FuzzUplinkOut FuzzUplinkIn; do \
		$(GO) test $(if $(ROOT),,-exec '$(SUDO)') -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./datapath || exit; \
	done
	@$(DEPS) iperf3 nft iptables conntrack ethtool ip
	for target in FuzzLabFast FuzzLabSlow FuzzLabXDP; do \
		FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test $(if $(ROOT),,-exec '$(SUDO)') -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./test/fuzz || exit; \
	done

# How many steps `make stress` takes of the programs beside their model.
STEPS ?= 10000000

stress: build ## a million flows and connections, STEPS (ten million) of programs beside their model, floods, storms, kills (forty minutes)
	FASTBR_STRESS_FLOWS=1000000 FASTBR_MODEL_STEPS=$(STEPS) $(GO) test -v $(if $(ROOT),,-exec '$(SUDO)') \
		-count=1 -timeout 60m -run '^(TestTwoCPUsOpenFlowsFromEqualPorts|TestFifteenThousandConnectionsASecond|TestProgramsEqualModel)$$' ./datapath
	@$(DEPS) iperf3 nft iptables conntrack ip
	FASTBR_STRESS=1 FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test -v $(if $(ROOT),,-exec '$(SUDO)') \
		-count=1 -timeout 60m -parallel 1 -run '^TestE2E(ConnectionRate|FifteenThousandConnectionsASecond|RangeAt95Percent|GreedyContainer|FragmentFlood|ManyPorts|AttachStorm|SweepBesideTraffic|KilledAtRandom|KilledThenUp|KilledThenDown|AttachTwiceAtOnce|AttachDuringDown|CNIMany)$$' ./test/e2e
	@$(DEPS) $(ENGINES)
	FASTBR_STRESS=1 FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test $(if $(ROOT),,-exec '$(SUDO)') -count=1 -run '^TestKubernetes$$' ./test/kubernetes

churn: build ## 200 containers come and go for CHURN (10m) beside traffic of others
	@$(DEPS) iperf3 nft iptables conntrack ip nsenter $(ENGINES)
	FASTBR_CHURN=$(CHURN) FASTBR_CHURN_CONTAINERS=200 FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test -v $(if $(ROOT),,-exec '$(SUDO)') \
		-count=1 -timeout 60m -run '^TestE2EChurn$$' ./test/e2e

kernels: build ## the programs and a lab with traffic on Debian's 6.12 and 6.1, emulated (some minutes)
	@$(DEPS) $(VM) iperf3 nft iptables conntrack ip nsenter /usr/lib/cni/host-local ipvsadm
	$(SUDO) .ci/kernels

lint: ## gofmt, go vet, staticcheck, clang-format, import walls; changes nothing
	@$(DEPS) $(CLANG_FORMAT)
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*' -not -name '*_bpfel.go')); \
		if [ -n "$$bad" ]; then echo "gofmt -w is due: $$bad" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags man ./cmd/fastbr
	$(GO) tool staticcheck ./...
	@if [ -n "$(BPF_SOURCES)" ]; then $(CLANG_FORMAT) --dry-run -Werror $(BPF_SOURCES); fi
	$(GO) test -count=1 -run '^TestWall' ./internal/testutil
	@echo '### make lint: clean'

generate: ## compile the BPF programs with clang 19 and write the Go code for them
	@$(DEPS) clang-19 llvm-strip-19
	$(GO) generate ./datapath/... ./bench/...

BENCH_TOOLS := iperf3 nft iptables sockperf dockerd busybox

bench: build ## fastbr beside docker, kernel bridges and the floor, in some ten minutes; writes bench/results and the tables
	@$(DEPS) $(BENCH_TOOLS)
	$(SUDO) $(BIN) bench --set table --rounds 10 --seconds 1 --ports 1000

bench-full: build ## every workload with every contestant, some hours
	@$(DEPS) $(BENCH_TOOLS)
	$(SUDO) $(BIN) bench --set full --rounds 10 --seconds 10 --ports 1023

bench-smoke: build ## one short run of every contestant and every kind of workload; keeps nothing
	@$(DEPS) $(BENCH_TOOLS)
	$(SUDO) $(BIN) bench --set smoke --rounds 1 --seconds 1 --ports 12 --out -
	$(SUDO) $(BIN) bench start --rounds 1 --ports 1 --out -

bench-count: build ## instructions per packet, KiB, connection and attach, in an emulated machine (four minutes); ACCEPT=1 stores them
	@$(DEPS) $(VM) iperf3 nft ip nsenter
	$(SUDO) .ci/count >bin/counts.json
	$(BIN) bench count --from bin/counts.json $(if $(ACCEPT),--accept)

bench-start: build ## docker run on fastbr beside docker's own bridge, with up to 10,000 ports (ten minutes)
	@$(DEPS) dockerd busybox iptables
	$(SUDO) $(BIN) bench start

score: build ## every check of the NAT requirements, waiting for timeouts (6 minutes); writes docs/NAT.md
	@$(DEPS) iperf3 nft iptables conntrack ip
	FASTBR_SCORE=write FASTBR_TEST_BINARY=$(CURDIR)/$(BIN) $(GO) test -count=1 -timeout $(TIMEOUT) $(if $(ROOT),,-exec '$(SUDO)') -run '^TestScore$$' ./test/rfc

deps: ## install the Debian packages that all targets together need, as far as missing
	@$(DEPS) iperf3 nft iptables conntrack brctl ethtool ip nsenter promtool prometheus $(ENGINES) $(FIREWALLS) $(ROUTERS) \
		$(BENCH_TOOLS) $(VM) clang-19 llvm-strip-19 $(CLANG_FORMAT)

build: ## bin/fastbr
	@mkdir -p $(dir $(BIN))
	$(BUILD) -o $(BIN) ./cmd/fastbr

man: ## the manual pages, in bin/man
	rm -rf $(PAGES)
	$(GO) run -tags man ./cmd/fastbr $(PAGES)

install: build man ## put fastbr, manual pages, completions and units under /usr/local (or PREFIX, DESTDIR)
	$(SUDO) env DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install $(BIN) $(PAGES)

uninstall: ## remove what install put there
	$(SUDO) env DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/uninstall

NFPM    := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.41.3

deb: ## bin/fastbr_VERSION_ARCH.deb, checked; installed, rebooted, removed in a copy of this system
	@$(DEPS) lintian dpkg-deb gzip dockerd busybox iptables ip nsenter systemd-socket-activate
	rm -rf bin/pkg
	$(BUILD) -trimpath -o bin/pkg-fastbr ./cmd/fastbr
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(MAKE) --no-print-directory man
	DESTDIR=$(CURDIR)/bin/pkg PREFIX=/usr packaging/install bin/pkg-fastbr $(PAGES)
	VERSION='$(VERSION)' ARCH=$$($(GO) env GOARCH) $(GO) run $(NFPM) package --config packaging/nfpm.yaml --packager deb --target bin/
	packaging/check-deb "$$(ls -t bin/fastbr_*.deb | head -n 1)"
	$(SUDO) packaging/try-deb "$$(ls -t bin/fastbr_*.deb | head -n 1)"
