# make test | demo | lint | bench | sanitize      Variables: PYTHON=python3 VENV=.venv PYTEST_ARGS=...
# On a fresh machine this needs Python 3.10 or newer, a C++ compiler and a package index.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
EXTRAS ?= train,caption,bench,dev

# Absolute, because the tests run from within tests/: there, `import smoothloss` finds the installed package with its
# compiled modules and never the source folder of that name.
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
PACKAGE := $(shell find smoothloss csrc cmake -type f -not -name '*.so' -not -path '*/__pycache__/*') \
           pyproject.toml setup.py CMakeLists.txt constraints.txt README.md
SANITIZE_VENV ?= .venv-sanitize

.PHONY: install test lint demo bench sanitize clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The way a user installs it: an isolated build of a wheel. build/lib* goes first, because setuptools would pack files
# into the wheel that are no longer in the source tree.
$(STAMP): $(BIN)/python $(PACKAGE)
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[$(EXTRAS)]"
	touch $@

# Triton's interpreter is chosen by the environment when triton is imported, so its tests have a process of their own.
test: $(STAMP)
	cd tests && $(BIN)/python -m pytest $(PYTEST_ARGS)
	cd tests && TRITON_INTERPRET=1 $(BIN)/python -m pytest ops/test_triton_interpreter.py $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

demo: $(STAMP)
	$(BIN)/smoothloss demo --out build/demo
	@echo "report: $$(find $(abspath build/demo) -maxdepth 1 -name '*.html')"

# `-m` puts the working folder on the path: one that holds the benchmarks alone, for the reason given above.
bench: $(STAMP)
	mkdir -p build/path && ln -sfn $(CURDIR)/benchmarks build/path/benchmarks
	cd build/path && $(BIN)/python -m benchmarks.logits_op --out $(CURDIR)/build/benchmarks/logits_op.json
	cd build/path && $(BIN)/python -m benchmarks.mle_vs_lazy --out $(CURDIR)/build/benchmarks/mle_vs_lazy

# _C with AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of its own. Leaks are not looked for:
# the interpreter itself never frees everything.
$(SANITIZE_VENV)/.installed: $(STAMP) $(PACKAGE)
	$(PYTHON) -m venv $(SANITIZE_VENV)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $(SANITIZE_VENV)/dependencies.pth
	cp $(SANITIZE_VENV)/dependencies.pth "$$($(SANITIZE_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	rm -rf build/lib* build/bdist*
	SMOOTHLOSS_CUDA=OFF $(SANITIZE_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall \
	    --config-settings=cmake.define.SMOOTHLOSS_SANITIZE=ON .
	touch $@

sanitize: $(SANITIZE_VENV)/.installed
	cd tests && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc SMOOTHLOSS_SANITIZED=1 \
	    $(abspath $(SANITIZE_VENV))/bin/python -m pytest ops/test_native.py $(PYTEST_ARGS)

clean:
	rm -rf build $(VENV) $(SANITIZE_VENV) *.egg-info
