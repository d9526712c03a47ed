# What linviz does on a machine with make. The work itself is in `python -m linviz ...`;
# this file only prepares .venv, with the tested versions of constraints.txt. (`make gpu` installs
# nothing: it runs with the machine's own PYTHON.)
#   PYTHON=python3.12 make ...   another interpreter (when .venv is made)
#   TORCH_INDEX=URL make ...     an extra package index to take torch from

PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help tour test lab lint mutate bench gpu book book-test handout clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' Makefile

tour: .venv/notebooks.done  ## run the tour and write build/tour.html
	@$(PY) -m linviz tour

lab: .venv/notebooks.done  ## open JupyterLab on the notebooks
	@$(PY) -m linviz lab

test: .venv/test.done .venv/book.done  ## ruff, pytest, the notebooks and the book
	@$(PY) -m linviz test

book: .venv/book.done  ## build the book into book/_build/html
	@$(PY) -m linviz book

book-test: .venv/test.done .venv/book.done  ## build the book and test it in a browser
	@$(PY) -m linviz book-test

handout: .venv/notebooks.done  ## write the notebooks without solutions into build/handout
	@$(PY) -m linviz handout

lint: .venv/test.done  ## ruff only
	@$(PY) -m linviz lint

mutate: .venv/test.done  ## plant faults; each must fail a test
	@$(PY) tests/mutate.py

bench: .venv/test.done  ## time the forms on the CPU
	@$(PY) -m linviz bench cpu

gpu:  ## on a GPU: tests, notebooks, benchmark; ARGS="--only bench -- --shapes S1"
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || { \
	  echo 'linviz gpu: $(PYTHON) has no PyTorch that sees a GPU.' >&2; exit 1; }
	@$(PYTHON) -m linviz gpu $(ARGS)

clean:  ## remove .venv and everything that was built
	rm -rf .venv build book/_build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'linviz needs Python 3.11 or later. Name one: PYTHON=python3.12 make ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'This Python has no venv module (Debian and Ubuntu: apt install python3-venv).' >&2; exit 1; }
	@echo 'linviz: making .venv'
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/notebooks.done: pyproject.toml constraints.txt | .venv/made
	@echo 'linviz: installing (1 of 3): pip'
	@$(INSTALL) --upgrade pip
	@echo 'linviz: installing (2 of 3): torch, the largest download'
	@$(INSTALL) $${TORCH_INDEX:+--extra-index-url "$$TORCH_INDEX"} torch
	@echo 'linviz: installing (3 of 3): linviz and the notebooks'
	@$(INSTALL) -e '.[notebooks]'
	@touch $@

.venv/test.done: .venv/notebooks.done
	@echo 'linviz: installing what the tests need'
	@$(INSTALL) --group test
	@touch $@

.venv/book.done: .venv/notebooks.done
	@echo 'linviz: installing what builds the book'
	@$(INSTALL) -e '.[book]'
	@touch $@
