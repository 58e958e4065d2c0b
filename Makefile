# `make` alone lists the targets. PYTHON=python3.12 picks the interpreter; ARGS="..." goes to the command that runs;
# WORKERS=4 is the number of processes that run the tests.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?=
INSTALLER ?=
ARGS ?=
WORKERS ?= 2

# Rough minutes on two cores, shown before a target starts.
SETUP_MINUTES := 1-4
DEMO_MINUTES := 3-5
TEST_MINUTES := 11-20
LINT_MINUTES := 1
BENCH_MINUTES := 7
CHAOS_MINUTES := 60
QUICKSTART_MINUTES := 5

# Nothing here reports home, looks for updates or downloads weights while it runs.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export PYTHON INSTALLER SETUP_MINUTES

# $(call timed,target,what it does,minutes,command): announces, runs, reports the seconds, keeps the exit status.
define timed
	@echo "$(1): $(2) (about $(3) min)"; start=$$SECONDS; export PATH="$(CURDIR)/.venv/bin:$$PATH"; \
	{ $(4); }; status=$$?; \
	if [ $$status -eq 0 ]; then echo "$(1): done in $$((SECONDS - start)) s"; \
	else echo "$(1): FAILED with exit status $$status after $$((SECONDS - start)) s" >&2; fi; \
	exit $$status
endef

.PHONY: help setup demo test lint bench chaos quickstart clean

help:
	@echo "make demo    train a federation of five synthetic hospitals and write its report (about $(DEMO_MINUTES) min)"
	@echo "make test    run the tests (about $(TEST_MINUTES) min)"
	@echo "make lint    ruff and mypy (about $(LINT_MINUTES) min)"
	@echo "make bench   measure message size, speed and memory (about $(BENCH_MINUTES) min)"
	@echo "make chaos   kill, cut, fill and attack a federation on this machine; resumable (about $(CHAOS_MINUTES) min)"
	@echo "make quickstart  type the quickstart of a real federation on this machine (about $(QUICKSTART_MINUTES) min; needs nginx)"
	@echo "make setup   install into .venv (about $(SETUP_MINUTES) min; the others do it when needed)"
	@echo "make clean   remove .venv, caches and runs/"

setup:
	@scripts/setup.sh

demo: setup
	$(call timed,demo,trains a federation of five synthetic hospitals and writes its report,$(DEMO_MINUTES),modaltune-simulate demo $(ARGS))

test: setup
	$(call timed,test,runs the tests,$(TEST_MINUTES),OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS))

lint: setup
	$(call timed,lint,checks style and types,$(LINT_MINUTES),s=0; ruff check . || s=1; ruff format --check . || s=1; mypy || s=1; (exit $$s))

bench: setup
	$(call timed,bench,measures message size and speed and memory,$(BENCH_MINUTES),modaltune bench $(ARGS))

chaos: setup
	$(call timed,chaos,kills and attacks a federation on this machine,$(CHAOS_MINUTES),python -m tests.chaos $(ARGS))

quickstart: setup
	$(call timed,quickstart,types docs/quickstart-federation.md,$(QUICKSTART_MINUTES),scripts/quickstart.sh)

clean:
	@echo "clean: removes .venv, caches and runs/ (a few seconds)"
	@rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done"
