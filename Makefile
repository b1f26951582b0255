# The commands of this tree; `make` alone lists them. They need Go and a Linux kernel, nothing else.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# Tests in namespaces measure repairs and outages in real time, hence one package at a time (-p 1).
# The race detector needs cgo and a C compiler.
RACE    := $(shell test "$$($(GO) env CGO_ENABLED)" = 1 && command -v "$$($(GO) env CC)" >/dev/null 2>&1 && echo -race)
FUZZTIME ?= 30s

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## bin/weftd and bin/weft, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/weftd ./cmd/weft

test: ## every test: unit, stores on a real etcd, network namespaces (rootless)
	$(if $(RACE),,@echo 'make test: no C compiler, so without the race detector')
	$(GO) test $(RACE) -p 1 -timeout 15m ./...

check: ## gofmt, vet, staticcheck, the rules of the tree, races
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./cmd
	$(if $(RACE),$(GO) test -race -timeout 10m -skip '^TestNetns' ./dataplane/... ./lease/... ./ctrl/... ./metrics/... ./cmd/weftd/...,@echo 'make check: no C compiler, so races are not checked')

demo: build ## three nodes on this machine, pods that reach each other (KEEP=1 leaves it running)
	./bin/weft demo $(if $(KEEP),--keep)

bench: build ## measure against the rivals this kernel has
	./bin/weft bench $(BENCHFLAGS)

image: ## the container image for amd64 and arm64 (needs docker)
	GO=$(GO) VERSION=$(VERSION) COMMIT=$(COMMIT) deploy/docker/build-image

fuzz: ## every fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
		echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; done; done

cross: ## build for every supported architecture, without cgo
	@set -e; for arch in amd64 arm64 386 arm; do echo "linux/$$arch"; \
		GOOS=linux GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/weftd; \
		GOOS=linux GOARCH=$$arch CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/weft; \
		GOOS=linux GOARCH=$$arch CGO_ENABLED=0 $(GO) vet ./...; done

.PHONY: help build test check demo bench image fuzz cross
