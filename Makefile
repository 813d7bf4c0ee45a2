# Each target is a line or two that calls cargo, xtask or a script.
.DEFAULT_GOAL := help
.PHONY: help build deb demo test check test-rollout soak bench-main bench-ocr bench-cluster bench-storage bench-schedule clean-demo

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build every binary into target/release
	cargo build --release --locked

deb: ## Debian packages of this machine's architecture into target/deb (`cargo xtask deb --arch all` builds arm64's too)
	cargo xtask deb

demo: ## Two nodes, real models, a share over NFS: see it work (KEEP=1 leaves it running)
	@deploy/demo/run.sh

test: ## Prove everything: format, lints, tidy, unit, conformance, whole clusters, kill -9, real models
	cargo xtask test

check: ## The quick part of that: format, lints, tidy
	cargo xtask check

test-rollout: ## Packages of two versions, and the playbooks on real hosts (guests on this machine); needs root
	cargo xtask test-rollout

soak: ## The long part: wider seeds, longer rounds (INGLE_SOAK_MINUTES=n bounds each)
	cargo xtask soak

bench-main: ## Speed, beside peers where there are any (KEEP=1 keeps the results)
	cargo run --release --locked --package ingle-benches -- main

bench-ocr: ## Pages per second, beside rapidocr and Tesseract
	cargo run --release --locked --package ingle-benches -- ocr

bench-cluster: ## Chats beside a backlog, and what the cluster costs beside its bare engines
	cargo build --release --locked
	cargo run --release --locked --package ingle-benches -- cluster

bench-storage: ## The NAS and the way from it, beside libnfs, nfs3_client, libiscsi and plain servers
	cargo run --release --locked --package ingle-benches -- storage

bench-schedule: ## Who is served when, beside round-robin and least connections; what a decision costs
	cargo run --release --locked --package ingle-benches -- schedule

clean-demo: ## Remove what the demonstration left, models and all
	rm -rf .demo
