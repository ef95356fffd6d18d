# book  execute every notebook and write the HTML book      test  the whole test suite, built pages included
# lab   explore, and work on the notebooks                  lint  ruff, mypy, import-linter
# bench speed and memory, always as ratios in one run       clean forget the built book
# slide  draw the slide of the book's deep-zoom page again, with the weights of today (hours on one core)
# gpu   on a machine with an NVIDIA GPU: the tests that need one, then its speed against targets
# faults  canvases whose processes are killed again and again (minutes)
# mutants  small changes of the code that no test notices (a quarter of an hour)
#
# Each sets up .venv by itself, and again only when requirements.txt or pyproject.toml change.
.PHONY: book test lab lint bench gpu slide faults mutants clean
.DEFAULT_GOAL := book

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SETUP := .venv/.stamp

$(SETUP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --root-user-action=ignore --requirement requirements.txt
	$(BIN)/pip install --quiet --root-user-action=ignore --no-deps --editable .
	@touch $@

# Warnings are errors here; otherwise it is the plain command (see book/_extensions/nca_execution.py).
book: $(SETUP)
	@jupyter-book build . --warningiserror --keep-going --quiet
	@echo "The book: $(CURDIR)/_build/html/index.html"

# The page tests open the built book, so it is built first. A process for each core, up to four, with one thread each
# (processes with several threads hinder each other tenfold); at the end, how many of the library's lines they ran.
test: book
	@MPLBACKEND=agg OMP_NUM_THREADS=1 pytest -n auto --maxprocesses 4 --dist worksteal --cov

lab: $(SETUP)
	@jupyter lab book/00_explore.ipynb

lint: $(SETUP)
	ruff check .
	ruff format --check .
	mypy nca_lib
	lint-imports

bench: $(SETUP)
	@python benchmarks/run.py
	@python benchmarks/tiles.py
	@python benchmarks/canvas.py --compiled --bf16 --steps 1
	@python benchmarks/roofline.py
	@python benchmarks/allocator.py

slide: $(SETUP)
	@python book/make_slide.py

gpu: $(SETUP)
	@pytest -m gpu
	@python benchmarks/gpu.py

faults: $(SETUP)
	@pytest -m faults

# What a mutant asks for may have no end: memory is limited here, time by mutmut.
mutants: $(SETUP)
	@rm -rf mutants
	@ulimit -v 12000000; OMP_NUM_THREADS=1 mutmut run
	@mutmut results | sed -n 's/: survived//p' | xargs -n 1 mutmut show > mutants/survivors.diff
	@echo "$$(grep -c '^@@' mutants/survivors.diff) changes that no test noticed: mutants/survivors.diff"

clean:
	rm -rf _build mutants
