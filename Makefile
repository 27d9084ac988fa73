# make demo    set up, build, and walk the tutorial on a throw-away engine
# make test    set up and run all tests (as root: they make containers)
# make check   formatting and lints
# make bench   the benchmarks, beside Docker where one listens
# make test-vm the tests that depend on cgroups, in a small emulated machine with cgroup v2 and Debian's kernel
# make install the release binary, completions and manual pages below PREFIX

SHELL := /bin/bash
PREFIX ?= /usr/local
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET ?= $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(HOST)/release/whelk
IMAGES ?= $(HOME)/.cache/whelk/images

.PHONY: all setup release demo test test-vm check bench install

all: release

setup:
	@scripts/setup

release: setup
	cargo build --release --locked -p whelk

demo: release
	WHELK_BIN=$(abspath $(RELEASE)) WHELK_IMAGES=$(IMAGES) scripts/demo

test: setup
	tests/images/make $(IMAGES)
	cargo build --locked -p whelk
	cargo test --locked --workspace --no-fail-fast

test-vm: setup
	cargo build --locked -p whelk
	cargo test --locked -p whelk-tests --no-run
	tests/vm/run

check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

bench: release
	tests/images/make $(IMAGES)
	scripts/bench $(abspath $(RELEASE)) $(IMAGES)

install: release
	install -D -m 755 $(RELEASE) $(DESTDIR)$(PREFIX)/bin/whelk
	ln -sf whelk $(DESTDIR)$(PREFIX)/bin/whelkd
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(RELEASE) man $(DESTDIR)$(PREFIX)/share/man/man1
	$(RELEASE) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/whelk
