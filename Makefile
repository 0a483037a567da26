# The one entry point. `make demo` runs Belay on a real cluster; `make test` is everything that CI runs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/belay
# CLUSTER=current uses the cluster of your KUBECONFIG (kind, minikube, k3d) instead of the embedded one.
CLUSTER ?= embedded
export CLUSTER

.PHONY: help demo demo-approval demo-real test test-unit graders fuzz test-cluster mutations lint generate check-generated cluster-up cluster-down \
	images bench

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: ## A cluster, Belay on it, and one agent run from Pending to Succeeded
	@e2e/demo

demo-approval: ## The same, and an agent that may delete once two people said yes
	@e2e/demo-approval

demo-real: ## The demo on a real model: Anthropic's or OpenAI's with the key in your environment, a small one of its own without
	@e2e/demo-real

test: lint check-generated test-unit graders test-cluster ## All that CI runs; needs root or CLUSTER=current

test-unit: ## The tests that need no cluster
	cargo test --workspace --exclude belay-e2e
	cargo test -p belay-e2e --lib --bins --test every_point

graders: ## Others judge: official clients and llmock codecs, rfc8785 canonical bytes, Prism HTTP requests, proxy.py the way out, oteltap spans, Prometheus metrics
	e2e/graders/run

fuzz: ## Ten minutes of fuzzing for each codec; FUZZ_SECONDS=60 is shorter
	runner/fuzz/run $(or $(FUZZ_SECONDS),600)

test-cluster: ## Tests on a real API server, kubelet and container runtime
	e2e/cluster-tests

mutations: ## Take away one rule at a time and see its test go red; compiles for an hour
	e2e/mutations

lint: ## rustfmt, clippy (pedantic), licences and duplicate providers
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	e2e/lint

generate: ## Write the CRDs' YAML and the Helm chart's copies from the Rust types and manifests
	e2e/generate

check-generated: ## Fail where `make generate` would change something
	e2e/generate --check

cluster-up: ## Start a single-node Kubernetes where there is none
	e2e/cluster/up

cluster-down: ## Stop it and leave nothing behind
	e2e/cluster/down

images: ## Release images as tars in target/images, for a registry or an air-gapped cluster
	e2e/images release

bench: ## Print the numbers of docs/bench.md on this machine
	e2e/bench/run
