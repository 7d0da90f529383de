# make demo    all set-up, then a simulated pair, one seeded fault, one incident
# make test    all set-up, then every check and every test
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
SOURCES := $(wildcard src/freezeframe/*.py) setup.py harness drivers firmware_sim fixtures bench_configs tests benchmarks
# Tests start processes of their own: two at a time keep a 2-core machine busy.
WORKERS ?= 2
SEED ?= 7
BENCHMARKS := reaction scan link nvme consoles pair capture memory dump
SCENARIO ?= bit_flip_receiver
# Of make rig-demo.
BENCH ?= drbd_qemu
# Faults of all kinds, and whether the verdict on each is right: in virtual time, and through the real processes.
VERDICT_RUNS ?= 500
VERDICT_PROCESSES ?= 26
# Pairs of faults; omitted and healthy resyncs, each.
VERDICT_PAIRS ?= 338
VERDICT_REJOINS ?= 90
# Of make soak.
MINUTES ?= 60
# Scripts of make tcp-diff, captures of make mutations.
RUNS ?= 10000

.PHONY: help setup demo test lint claims docs bench bench-setup verdict tcp-diff mutations mutants soak kill-matrix nightly pytest wheels rig-demo test-rig smoke-arm64 test-arm64

help:
	@echo "make setup   .venv with everything in it, and the system tools that the tests need"
	@echo "make demo    set-up, then a simulated pair, one seeded fault, one incident"
	@echo "make test    set-up, then every check and every test"
	@echo "make rig-demo  the same on two real Linux nodes in QEMU; no KVM needed. BENCH=drbd_qemu, nvme_qemu or nbd_qemu"
	@echo "make test-rig  the tests of that rig"
	@echo "make smoke-arm64  the units of docs/systemd on emulated arm64, and runs on them; no ARM machine needed"
	@echo "make test-arm64  that, and the tests of the harness's core and of the simulator on emulated arm64"
	@echo "make wheels  dist/: the wheel for this machine, and the one for any processor"
	@echo "make lint    the checks without the tests"
	@echo "make claims  docs/claims.md: each requirement with the tests that prove it"
	@echo "make verdict docs/verdict.md: $(VERDICT_RUNS) faults, and whether the verdict on each is right"
	@echo "make tcp-diff  RUNS=$(RUNS) random segment scripts into this kernel's TCP and into the follower; root"
	@echo "make mutations  RUNS=$(RUNS) captures changed as taps, mirrors and clocks change them: no false hit, no unsaid loss"
	@echo "make mutants docs/mutants.md: bugs put into the code on purpose, named and 100 drawn by SEED, and the tests that notice them"
	@echo "make soak    MINUTES=$(MINUTES) of a watch that is disturbed all the time, with true faults: a table, exit status 1 when anything is wrong"
	@echo "make kill-matrix  kill -9 of each process at each phase of run and watch"
	@echo "make nightly the tests, those on arm64, 2,000 + 104 faults, 2,000 pairs and 1,000 resyncs judged, every byte of a write, 10,000 changed captures, bugs put into the code on purpose, and the kill matrix"
	@echo "make docs    the generated documents"
	@echo "make bench   every benchmark beside its peers, written to docs/performance.md; make bench-NAME for one:"
	@echo "             $(BENCHMARKS) (BENCH_ARGS='--json --rounds 1' and the like)"

setup:
	@.ci/setup test

demo:
	@.ci/setup demo
	@$(BIN)/freezeframe run $(SCENARIO) --bench sim --seed $(SEED); $(WHERE)

# After a command whose hints name freezeframe: how it is typed here. The command's status stays.
WHERE = status=$$?; [ "$$(command -v freezeframe)" = "$(CURDIR)/$(BIN)/freezeframe" ] || \
	echo "freezeframe is $(BIN)/freezeframe here; or type first: . $(BIN)/activate"; exit $$status

# Each check says one line when it passes, and everything when it fails.
define check
	@log=$$(mktemp); if $(2) >$$log 2>&1; then echo "$(1): ok"; rm -f $$log; \
	else echo "$(1): FAILED: $(2)"; cat $$log; rm -f $$log; exit 1; fi
endef

# The image of the nodes is built once, before the clock of the demo runs.
rig-demo:
	@.ci/setup rig
	@$(BIN)/freezeframe rig image --bench $(BENCH)
	@$(BIN)/freezeframe run bit_flip_sender --bench $(BENCH) --seed $(SEED); $(WHERE)

test-rig:
	@.ci/setup rig
	@$(BIN)/freezeframe rig image --bench drbd_qemu
	@$(BIN)/freezeframe rig image --bench nvme_qemu
	@$(BIN)/freezeframe rig image --bench nbd_qemu
	@$(BIN)/python -m pytest -q tests/rig tests/system/test_scenarios.py --run-rig --ff-bench bench_configs/drbd_qemu.toml --timeout 300 $(PYTEST_ARGS)

smoke-arm64:
	@.ci/setup arm64
	@$(BIN)/python tests/tools/arm64.py
	@$(BIN)/python -m pytest -q tests/arm64 --run-arm64 $(PYTEST_ARGS)

# A test whose tool is not there (tshark, a compiler) is skipped, and listed. An emulated processor is about ten times
# slower, and so is the bound of a hang.
test-arm64: smoke-arm64
	@$(BIN)/python tests/tools/arm64.py run python -m pytest -q -n $(WORKERS) --dist loadgroup -p no:cacheprovider --timeout 2400 \
		tests/firmware_sim tests/harness/core $(PYTEST_ARGS)

lint: setup
	$(call check,ruff check,$(BIN)/ruff check $(SOURCES))
	$(call check,ruff format,$(BIN)/ruff format --check $(SOURCES))
	$(call check,mypy --strict,$(BIN)/mypy)
	$(call check,import-linter,$(BIN)/lint-imports)
	$(call check,docs/control-frames.md,$(BIN)/python tests/tools/framesdoc.py --check)
	$(call check,docs/bench-files.md,$(BIN)/python tests/tools/lists.py --check)
	$(call check,docs/incident-format.md,$(BIN)/python tests/tools/formatdoc.py --check)
	$(call check,docs/freezeframe.1,$(BIN)/python tests/tools/manpage.py --check)
	$(call check,docs/claims.md,$(BIN)/python tests/tools/claims.py --check)

# With lint and pytest named in this order, a failed check stops before the tests.
test: lint
	@$(MAKE) --no-print-directory pytest

pytest: setup
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

# pip reuses build/: what one wheel left there would be in the other.
wheels: setup
	@rm -rf build dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@rm -rf build
	@FREEZEFRAME_PURE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@rm -rf build
	@ls dist/*.whl

claims: setup
	@$(BIN)/python tests/tools/claims.py

# What takes longer than .ci/run may. Each part runs, and one that failed fails the whole.
nightly: setup
	@status=0; \
	$(MAKE) --no-print-directory pytest || status=1; \
	$(MAKE) --no-print-directory test-arm64 || status=1; \
	$(BIN)/python tests/tools/verdictrun.py --runs 2000 --processes 104 --pairs 2000 --rejoins 500 || status=1; \
	$(BIN)/python tests/tools/byterun.py || status=1; \
	$(BIN)/python tests/tools/mutations.py --runs 10000 || status=1; \
	$(BIN)/python tests/tools/mutants.py --named --drawn 100 || status=1; \
	$(BIN)/python tests/tools/killmatrix.py || status=1; \
	exit $$status

verdict: setup
	@$(BIN)/python tests/tools/verdictrun.py --runs $(VERDICT_RUNS) --processes $(VERDICT_PROCESSES) \
		--pairs $(VERDICT_PAIRS) --rejoins $(VERDICT_REJOINS) --write docs/verdict.md

tcp-diff: setup
	@$(BIN)/python tests/tools/tcpdiff.py --runs $(RUNS)

mutations: setup
	@$(BIN)/python tests/tools/mutations.py --runs $(RUNS)

mutants: setup
	@$(BIN)/python tests/tools/mutants.py --named --drawn 100 --seed $(SEED) --write docs/mutants.md

soak: setup
	@$(BIN)/python tests/tools/soak.py --minutes $(MINUTES) --seed $(SEED)

kill-matrix: setup
	@$(BIN)/python tests/tools/killmatrix.py

docs: setup claims
	@$(BIN)/python tests/tools/framesdoc.py
	@$(BIN)/python tests/tools/lists.py
	@$(BIN)/python tests/tools/formatdoc.py
	@$(BIN)/python tests/tools/manpage.py

bench-setup: setup
	@.ci/setup bench

bench: $(addprefix bench-,$(BENCHMARKS))

$(addprefix bench-,$(BENCHMARKS)): bench-%: bench-setup
	@$(BIN)/python -m benchmarks.$* $(BENCH_ARGS)
