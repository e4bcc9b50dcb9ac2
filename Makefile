# Everything a contributor or a CI job runs. `make help` lists the targets.
# Needed: a Go toolchain (see go.mod), a C compiler for the race detector, and
# Node for the browser client's tests.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Each module is built with the versions of its own go.mod, as its users get
# it, whether go.work lists it or not. Nested modules find the root module by a
# replace directive.
export GOWORK := off

# Every module of the repository except the tools' own.
MODULES := $(sort $(patsubst %/,%,$(dir $(shell find . -name go.mod \
	-not -path './tools/*' -not -path '*/node_modules/*' -not -path '*/testdata/*'))))
# Those whose tests mostly wait for servers: they run at the same time.
WAITING := ./extension/micro/etcd ./extension/micro/zookeeper ./extension/pubsub/nats ./extension/pubsub/redis
BUILD       := $(CURDIR)/.build
STATICCHECK := $(BUILD)/staticcheck
CROSS       := darwin freebsd windows

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: lint race fuzz-short js browser examples ## everything a change must pass

.PHONY: lint
lint: $(STATICCHECK) ## formatting, go vet on all systems, staticcheck
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; fi
	@for m in $(MODULES); do \
		echo "vet and staticcheck $$m"; \
		(cd $$m && go vet ./... && $(STATICCHECK) ./...); \
	done
	@for os in $(CROSS); do echo "vet GOOS=$$os"; GOOS=$$os go vet ./...; done

.PHONY: fmt
fmt: ## format all Go files
	gofmt -w .

.PHONY: race
race: ## all tests of all modules under the race detector, one package at a time as most keep all cores busy
	@for m in $(filter-out $(WAITING),$(MODULES)); do echo "go test -race $$m"; (cd $$m && $(CURDIR)/.ci/race); done
	@printf '%s\n' $(WAITING) | xargs -P 4 -I{} bash -c 'out=$$(cd {} && $(CURDIR)/.ci/race 2>&1); rc=$$?; echo "go test -race {}"; echo "$$out"; exit $$rc'

.PHONY: interop
interop: ## only the tests against the published arpc
	cd interop && go test -race -count=1 ./...

.PHONY: fuzz-short
fuzz-short: ## every fuzz target for a second
	.ci/fuzz 1s

.PHONY: fuzz
fuzz: ## every fuzz target for a minute
	.ci/fuzz 60s

.PHONY: bench
bench: ## the comparison with other systems, memory and bars (docs/performance.md)
	cd benchmark && go run . -scenarios all
	cd benchmark && go run . -check

.PHONY: bench-micro
bench-micro: ## the benchmarks of the root module's packages, with allocations
	go test -run '^$$' -bench . -benchmem ./...

.PHONY: idle
idle: ## memory per idle connection
	cd benchmark && go run . -scenarios idle

SOAK ?= 20

.PHONY: soak
soak: ## the tests of the root and interop modules SOAK times (default 20) under the race detector
	go test -race -count=$(SOAK) -timeout 0 ./...
	cd interop && go test -race -count=$(SOAK) -timeout 0 ./...

.PHONY: chaos
chaos: ## servers killed and started for two minutes each: pub/sub on NATS and on Redis, micro
	for engine in nats redis; do \
		(cd extension/pubsub/$$engine && ARPC_CHAOS=2m go test -count=1 -timeout 10m -v -run '^TestChaos$$' .); \
	done
	ARPC_CHAOS=2m go test -count=1 -timeout 10m -v -run '^TestChaos$$' ./extension/micro

JSCLIENT := extension/jsclient

.PHONY: js
js: ## the TypeScript client and what protoc-gen-arpc generates for it: built files up to date, types, size, tests against the Go server
	cd $(JSCLIENT) && npm ci --no-audit --no-fund --loglevel=error
	cd $(JSCLIENT) && npm run --silent check && npm run --silent types && npm run --silent size && $(CURDIR)/.ci/again npm test --silent
	cd examples/typed-web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent check
	cd cmd/protoc-gen-arpc/regenerate && ARPC_NODE=1 go test -race -count=1 -run TypeScript .

.PHONY: browser
browser: ## the TypeScript client, examples/webchat, typed-web and live-board in a real browser, which is installed if it is missing
	cd $(JSCLIENT)/browser && npm ci --no-audit --no-fund --loglevel=error && npm run --silent chromium && $(CURDIR)/.ci/again npm test --silent

.PHONY: examples
examples: ## run the quickstart, which fails if any of its steps does
	go run ./examples/quickstart

$(STATICCHECK): tools/go.mod tools/go.sum
	@mkdir -p $(BUILD)
	GOFLAGS= GOBIN=$(BUILD) go -C tools install tool
	@touch $@
