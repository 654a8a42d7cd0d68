# Cloister. `make` builds, `make help` lists the rest. Everything made lies under bin/ and build/.

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS     += --no-print-directory

VERSION := $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X github.com/cloister-vmm/cloister/cmd/internal/session.version=$(VERSION)

# The last CPU that this process may use: CPU 0 has most of the host's own work.
CPU      ?= $(shell sed -n 's/^Cpus_allowed_list:.*[^0-9]\([0-9]*\)$$/\1/p' /proc/self/status)
FUZZTIME ?= 30s
LANES    := build/lanes

# What the tests build and compare with. CHECK=PACKAGE, see tools/need.
TEST_NEEDS := gcc=gcc g++=g++ pgrep=procps musl-gcc=musl-tools rustc=rustc spin=spin \
	/usr/lib/x86_64-linux-gnu/libc.a=libc6-dev \
	/usr/share/doc/busybox-static=busybox-static /bin/bash-static=bash-static \
	/bin/zsh-static=zsh-static /bin/mksh-static=mksh /sbin/e2fsck.static=e2fsck-static mke2fs=e2fsprogs /usr/bin/gpgv-static=gpgv-static \
	/usr/lib/x86_64-linux-gnu/libsqlite3.a=libsqlite3-dev /usr/lib/x86_64-linux-gnu/libz.a=zlib1g-dev \
	/usr/lib/x86_64-linux-gnu/libcrypto.a=libssl-dev /usr/lib/x86_64-linux-gnu/liblua5.4.a=liblua5.4-dev

.PHONY: build demo test test-unit test-kvm table check fmt vet lint policy bench tear model fuzz cover deps codeowners notice clean help FORCE

build: ## build bin/cloister and bin/cloister-monitor (the default)
	@command -v go >/dev/null || { echo "make: no go in PATH: install Go 1.26 or later" >&2; exit 1; }
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

demo: build ## build, run the jitter sampler on the last CPU for 5 s, show its break report (CPU=n)
	@tools/machine --kvm
	bin/cloister run --cpu $(CPU) --for 5s @jitter

# A binary and not `go run`, whose own last line would follow the table's.
build/lanes: FORCE
	@mkdir -p build && go build -buildvcs=false -o $@ ./internal/testenv/cmd/lanes

test: deps build/lanes ## run every test that this machine can run, and say what it could not (installs what they need as root)
	@tools/machine
	@rm -f build/lane-unit.json build/lane-kvm.json
	@bad=0; lane=$$($(LANES) detect); ran=build/lane-unit.json; \
	$(MAKE) test-unit || bad=1; \
	if [ "$$lane" = kvm ]; then ran="$$ran build/lane-kvm.json"; $(MAKE) test-kvm || bad=1; fi; \
	$(LANES) table $$ran <($(call elsewhere,lab,svm,make lab)) <($(call elsewhere,lab-vmx,vmx,make lab BACKEND=vmx)) || bad=1; \
	exit $$bad

# The row of a lane that another command runs: LANE, BACKEND, COMMAND.
elsewhere = printf '{"Action":"lane","Lane":"%s","Kernel":"none","Backend":"%s"}\n{"Action":"lane-not-run","Output":"%s"}\n' $(1) $(2) '$(3) runs it, in an emulated machine'

test-unit: build/lanes ## the unit lane: under the race detector where there is a C compiler, heavy loops shortened
	@race=; if command -v gcc >/dev/null; then race=-race; else echo "make: no gcc: the unit lane runs without the race detector" >&2; fi; \
	one=; if [ -w /dev/kvm ]; then one="-p 1"; fi; \
	CGO_ENABLED=$${race:+1} $(LANES) run unit build/lane-unit.json $$race $$one -short -timeout 20m ./...

test-kvm: build/lanes ## the kvm lane: one package at a time, since they share the dedicated core
	@$(LANES) run kvm build/lane-kvm.json -count=1 -p 1 -timeout 40m ./...

table: build/lanes ## print the table of all lanes that ran since `make clean`
	@$(LANES) table build/lane-*.json

check: fmt vet lint policy ## gofmt, vet, staticcheck and the rules of internal/policy

fmt: # gofmt
	@out=$$(gofmt -l $$(find . -name '*.go' -not -path './build/*' -not -path './.git/*')); \
	[ -z "$$out" ] || { echo "gofmt: run gofmt -w on:"; echo "$$out"; exit 1; }

vet: # go vet
	go vet ./...

lint: # staticcheck, a tool of go.mod
	go tool staticcheck ./...

policy: ## the rules only: imports, ORDER tags, documents, commits
	go test -count=1 ./internal/policy

BENCH ?= -fifo 50

bench: build ## measure the ratios of SPECIFICATION.md in one run, print the table, fail where a target is missed (BENCH=flags)
	@tools/need --must gcc=gcc
	@tools/machine --kvm
	go run ./bench $(BENCH)

# The test of the mission, on the host and in the lab (lab-tear).
TEAR := ^(TestDeferredTears|TestTear|TestVersions)$$

tear: ## patch a running guest 100,000 times, and show that the deferred way tears and stopping does not (needs /dev/kvm)
	@tools/machine --kvm
	go test -count=1 -v -timeout 60m -run '$(TEAR)' ./patch/running

model: ## check the models of the concurrent protocols and demand the counter-examples of the wrong ones
	@tools/need --must spin=spin gcc=gcc
	model/run

fuzz: ## run every fuzz target for FUZZTIME each (30s)
	@n=0; while IFS=: read -r file _ line; do \
	  name=$$(sed 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/' <<<"$$line"); n=$$((n+1)); \
	  echo "fuzz: $$name in $${file%/*}"; \
	  go test -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) "./$${file%/*}"; \
	done < <(git -c safe.directory='*' grep --untracked -n '^func Fuzz' -- '*_test.go'); \
	echo "fuzz: $$n targets, $(FUZZTIME) each, none failed"; [ $$n -gt 0 ]

cover: ## coverage of all packages by all tests of this machine: build/cover.html
	@mkdir -p build
	go test -p 1 -count=1 -timeout 40m -coverpkg=./... -coverprofile=build/cover.out ./...
	@go tool cover -html=build/cover.out -o build/cover.html
	@go tool cover -func=build/cover.out | tail -n 1

deps: # what the tests need besides Go
	@tools/need $(TEST_NEEDS)
	@if [ ! -d /sys/kernel/tracing/events ] && [ "$$(id -u)" = 0 ]; then \
	  mount -t tracefs tracefs /sys/kernel/tracing || echo "make: tracefs cannot be mounted: tests that count events are skipped" >&2; fi

codeowners: ## write CODEOWNERS from MAINTAINERS
	@CLOISTER_WRITE=codeowners go test -count=1 -run '^TestWriteCodeowners$$' ./internal/policy

notice: ## make the list of modules in NOTICE follow go.mod
	@CLOISTER_WRITE=notice go test -count=1 -run '^TestLicences$$' ./internal/policy

clean: ## remove bin/ and build/
	rm -rf bin build

help: ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

-include lab/lab.mk
