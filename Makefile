# make demo    install dependencies, build, and run a tutorial on a temporary engine
# make test    install dependencies and run all tests and fuzz targets (as root: tests create containers)
# make check   check formatting and lints, and build the fuzz targets
# make bench   run the benchmarks, compared with Docker if DOCKER_BENCH_HOST is set
# make test-vm run the tests that depend on cgroups in an emulated machine with cgroup v2 and Debian's kernel
# make test-fresh  run the commands of README.md in a minimal Debian 12
# make install install the release binary, completions, manual pages and systemd units below PREFIX

SHELL := /bin/bash
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET ?= $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(HOST)/release/whelk
SKIPPED := $(abspath $(TARGET))/skipped
IMAGES ?= $(HOME)/.cache/whelk/images
# The programs and the tests, together: by themselves they would have other features of some crates, and compile most of them twice.
TESTED := --workspace --bin 'whelk*' --tests

.PHONY: all setup release demo test test-vm test-fresh check bench install install-systemd

all: release

setup:
	@scripts/setup

release: setup
	WHELK_COMMIT=$$(git rev-parse --short=12 HEAD 2>/dev/null) \
	  WHELK_BUILD_TIME=$$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%S.000000000+00:00 2>/dev/null) \
	  cargo build --release --locked -p whelk

demo: release
	WHELK_BIN=$(abspath $(RELEASE)) WHELK_IMAGES=$(IMAGES) scripts/demo

test: setup
	tests/images/make $(IMAGES)
	cargo build --locked $(TESTED)
	rm -f $(SKIPPED)
	result=0; WHELK_SKIPPED=$(SKIPPED) cargo test --locked --workspace --no-fail-fast || result=$$?; \
	  scripts/skips $(SKIPPED) && exit $$result
	scripts/fuzz run 5

test-vm: setup
	cargo build --locked $(TESTED)
	tests/vm/run

test-fresh: setup
	scripts/test-fresh

check: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/fuzz build

bench: release
	tests/images/make $(IMAGES)
	scripts/bench $(abspath $(RELEASE)) $(IMAGES)

install: release install-systemd
	install -D -m 755 $(RELEASE) $(DESTDIR)$(BINDIR)/whelk
	ln -sf whelk $(DESTDIR)$(BINDIR)/whelkd
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(RELEASE) man $(DESTDIR)$(PREFIX)/share/man/man1
	$(RELEASE) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/whelk
	$(RELEASE) completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_whelk
	$(RELEASE) completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/whelk.fish

install-systemd:
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in whelk.service whelk.socket whelk-shutdown.service; do \
	  sed 's|@BINDIR@|$(BINDIR)|' contrib/systemd/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; \
	done
