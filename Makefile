# The commands of this repository; `make` alone lists them. Most need only Go and a Linux kernel.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# The race detector needs cgo and a C compiler.
RACE    := $(shell test "$$($(GO) env CGO_ENABLED)" = 1 && command -v "$$($(GO) env CC)" >/dev/null 2>&1 && echo -race)
FUZZTIME ?= 30s
# Debian keeps iptables, nft and dockerd out of an ordinary user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

build: ## bin/weftd and bin/weft, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/weftd ./cmd/weft

# Namespace tests measure repairs and outages in real time, so packages run one at a time (-p 1).
# -count=1: a skipped test must run again once its reason is gone, which the test cache cannot know.
test: host ## all tests: unit, lease stores on a real etcd, network namespaces (rootless)
	$(if $(RACE),,@echo 'make test: no C compiler, running without the race detector')
	$(GO) tool gotestsum --format pkgname-and-test-fails -- $(RACE) -count=1 -p 1 -timeout 40m ./...

host:
	@GO=$(GO) .ci/host

check: ## gofmt, vet, staticcheck, the rules of the repository, races
	@test -z "$$(gofmt -l .)" || { echo 'not gofmt-ed:'; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./cmd
	$(if $(RACE),$(GO) test -race -timeout 10m -skip '^TestNetns' ./dataplane/... ./lease/... ./ctrl/... ./metrics/... ./cmd/weftd/...,@echo 'make check: no C compiler, races not checked')

netns: ## namespace tests by name, rootless: make netns PKG=./ctrl/backend RUN=TestNetnsVXLAN
	WEFT_REQUIRE_NETNS=1 $(GO) test -p 1 -v -count=1 -run '$(or $(RUN),^TestNetns)' $(or $(PKG),./...)

kube: ## tests with a Kubernetes API server and CNI plugins, which it builds first (8 minutes of CPU)
	WEFT_TESTKUBE=$$(.ci/kube/build) && WEFT_CNI=$$(.ci/kube/cni) && WEFT_HELM=$$(.ci/helm/build) && export WEFT_TESTKUBE WEFT_CNI WEFT_HELM && \
		DOCKER= deploy/docker/build-image $$($(GO) env GOHOSTARCH) && export WEFT_IMAGE=$(CURDIR)/bin/image/$$($(GO) env GOHOSTARCH) && \
		$(GO) test -p 1 -timeout 30m $(if $(RUN),-v -run '$(RUN)') ./lease/kube/... ./deploy

vm: ## tests on another kernel, in qemu: make vm KERNEL=linux-image-6.12-cloud-amd64 PKG=./ctrl/backend RUN=TestNetnsVXLAN
	.ci/vm/run $(or $(PKG),./ctrl/backend) '-test.run=$(or $(RUN),^TestNetns)' -test.v

demo: host build ## three nodes on this machine, with pods that reach each other (KEEP=1 keeps it running)
	./bin/weft demo $(if $(KEEP),--keep)

man: build ## the manual pages of weft, in bin/man
	./bin/weft man bin/man

bench: build ## measure Weft and the tunnels available on this machine
	./bin/weft bench $(BENCHFLAGS)

image: ## the container images for amd64, arm64, arm and 386 (needs docker, and apt with Debian's keys)
	GO=$(GO) VERSION=$(VERSION) COMMIT=$(COMMIT) deploy/docker/build-image

fuzz: ## run every fuzz target for FUZZTIME
	@set -e; for pkg in $$($(GO) list ./...); do for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
		echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; done; done

# The flags are those of build, so that both share the build cache.
cross: ## build and vet for every supported architecture, without cgo
	@set -e; export GOOS=linux CGO_ENABLED=0 GOFLAGS=-trimpath; for GOARCH in amd64 arm64 386 arm; do \
		export GOARCH; echo "linux/$$GOARCH"; \
		$(GO) build -ldflags '$(LDFLAGS)' -o bin/$$GOARCH/ ./cmd/weftd ./cmd/weft; $(GO) vet ./...; done

.PHONY: help host build test check netns kube vm demo man bench image fuzz cross
