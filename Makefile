# Gastown needs Go 1.26, git and make; "make help" lists what there is to make.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOBUILD  = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# auto: the race detector where a C compiler is found; required: an error without one; off.
RACE     ?= auto
FUZZTIME ?= 30s
# What "make bench" runs, as a regular expression, and where.
BENCH    ?= .
BENCHPKG ?= ./...
# What "make cross" builds.
CROSS    ?= linux-amd64 linux-arm64 darwin-amd64 darwin-arm64
# Flags for the measurement of a real server, which follows when all benchmarks run.
LOAD     ?=

AGENTBIN = $(CURDIR)/build/agents/node_modules/.bin

.DEFAULT_GOAL := build
.PHONY: help demo build test e2e image docker agents lint bench fuzz cross docs clean

help: ## list the targets
	@grep -E '^[a-z0-9]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## build gastown and watch a town work and go to sleep
	$(GOBUILD) -o bin/gastown ./cmd/gastown
	bin/gastown demo

build: ## build bin/gastown and bin/gastown-lab
	$(GOBUILD) -o bin/ ./cmd/gastown ./cmd/gastown-lab

test: ## run all tests; RACE=required insists on the race detector
	tools/test '$(RACE)'

e2e: build agents ## run the end to end tests with real coding agents
	GASTOWN_TEST_OPENCODE='$(AGENTBIN)/opencode' GASTOWN_TEST_AGENTS='$(AGENTBIN)' go test -tags e2e -timeout 20m ./internal/e2e/... ./internal/agent/agenttest/

image: build ## build the image gastown:local for sandboxes in containers; AGENTS=build/agents brings agents in
	bin/gastown-lab image $(if $(AGENTS),--agents '$(AGENTS)')

docker: build ## test sandboxes in containers, with an engine that is started when none answers
	tools/engine tools/docker

agents: build/agents/.installed ## install the pinned coding agents into build/agents

build/agents/.installed: tools/agents/package.json tools/agents/package-lock.json tools/agents/.npmrc
	mkdir -p build/agents
	cp $^ build/agents/
	cd build/agents && npm ci
	touch $@

lint: ## check format, code and layout
	tools/lint

bench: ## run the benchmarks, then measure a real server; a table compares with the targets
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(BENCHPKG)
	$(if $(filter .,$(BENCH)),go run ./cmd/gastown-lab load all $(LOAD))

fuzz: ## fuzz each parser for FUZZTIME
	tools/fuzz '$(FUZZTIME)'

cross: ## build for linux and darwin, amd64 and arm64, into build/cross
	@set -e; for to in $(CROSS); do \
		echo "build/cross/$$to"; \
		GOOS=$${to%-*} GOARCH=$${to#*-} $(GOBUILD) -o build/cross/$$to/ ./cmd/gastown ./cmd/gastown-lab; \
	done

docs: ## write the generated pages anew
	go test ./internal/arch -run Page -update

clean: ## remove what was built
	rm -rf bin build
