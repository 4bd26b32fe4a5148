# On a machine with Python >= 3.11 and a C compiler, and nothing else prepared:
#
#   make demo      the library at work on real input; the first run also builds, a minute or more
#   make cluster-demo  one program on this machine and on a dask cluster, of which a worker dies
#   make test      build the extension, require it, run the suite over both backends
#   make coverage  what of Python and Cython the tests run, and the floor of it
#   make chaos     workers die at random under load, every task is accounted for; SECONDS=, SEED=
#   make test-aarch64, make test-i386    the core of the suite in a Debian root of that architecture,
#                  which is made first, as root: aarch64 is emulated; SHORT=1: two or three minutes
#   make bench     this library beside its peers, under 30 minutes for the Python that PYTHON= names,
#                  whose figures it replaces in the docs; QUICK=1: some minutes
#   make docs      the site, into build/site; make docs-serve shows it
#
# PYTHON= chooses the interpreter (default python3), ARGS= goes to pytest or to the demo. EXTRA=test-core
# spares `make test` what only the examples, the clusters, the site and the checks of types need.

PYTHON ?= python3
ARGS ?=
EXTRA ?= test

# One environment for each interpreter, so that `make test PYTHON=python3.12` never reuses another's.
KEY := $(shell $(PYTHON) -c 'import sys, zlib; sys.version_info >= (3, 11) and \
  print("%s-%08x" % (sys.implementation.cache_tag, zlib.crc32(sys.base_prefix.encode())))')
ifeq ($(KEY),)
$(error $(PYTHON) is not a Python >= 3.11; say which one by `make PYTHON=python3.12 ...`)
endif

VENV := .venv/$(KEY)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(EXTRA)
SOURCES := pyproject.toml setup.py MANIFEST.in README.md LICENSE \
  $(sort $(shell find src amp_ext -name __pycache__ -prune -o -type f -not -name '*.so' -print))
# Made anew when a source comes or goes. (The times of folders, which show that, also change with __pycache__.)
LISTED := $(VENV)/.sources-$(firstword $(shell echo $(SOURCES) | cksum))
# setuptools reads this file beside pyproject.toml. Each interpreter has its build tree in its own
# environment: a checkout stays clean, and two builds at a time do not meet.
BUILD := DIST_EXTRA_CONFIG=$(abspath $(VENV))/build.cfg

.PHONY: demo cluster-demo test test-aarch64 test-i386 chaos stress verify verify-short verify-model verify-fuzz verify-stress \
  coverage lint typecheck workflows wheels format bench compare docs docs-serve changelog clean

demo: $(VENV)/.demo
	@echo "running examples/demo.py $(ARGS)"
	@$(BIN)/python examples/demo.py $(ARGS)

cluster-demo: $(VENV)/.cluster
	@$(BIN)/python examples/cluster.py $(ARGS)

test: $(INSTALLED)
	AIOMULTIPROCESS_REQUIRE_EXTENSION=1 $(BIN)/pytest $(ARGS)

# On x86_64 as root; .ci/foreign says what it installs. ARGS= replaces the tests.
test-aarch64:
	PYTHON=$(PYTHON) .ci/foreign aarch64 $(if $(SHORT),--short) $(ARGS)
test-i386:
	PYTHON=$(PYTHON) .ci/foreign i386 $(if $(SHORT),--short) $(ARGS)

# Lines of Python and of Cython that tests run, in an environment whose extensions are traced (CPython
# 3.11 alone). WRITE=1 puts the figures into docs/verification.md; pages are below build/coverage.
coverage:
	.ci/coverage $(PYTHON) $(VENV)-coverage $(if $(WRITE),--write)

# Random deaths of workers under a mixed load, and exact accounts of it: an hour is SECONDS=3600.
SECONDS ?= 60
SEED ?= 1
chaos: $(INSTALLED)
	$(BIN)/python -m tests.project.chaos --seconds $(SECONDS) --seed $(SEED) $(ARGS)

stress:
	amp_ext/stress/run.sh $(ARGS)

# The ring, by a model checker, a fuzzer and sanitizers: a quarter of an hour (docs/verification.md).
# Needs spin, clang and libclang-rt from the system.
VERIFY_MESSAGES ?= 100000000
verify:
	amp_ext/model/run.sh
	amp_ext/fuzz/run.sh 60
	amp_ext/stress/run.sh $(VERIFY_MESSAGES) 10000

# What of it each commit can afford: `make -j2 verify-short`.
verify-short: verify-model verify-fuzz verify-stress
verify-model:
	amp_ext/model/run.sh short
verify-fuzz:
	amp_ext/fuzz/run.sh 15
verify-stress:
	amp_ext/stress/run.sh 5000000 1000

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src amp_ext tests docs examples benchmarks changes .github .ci *.md *.toml *.cff Makefile setup.py

typecheck: $(VENV)/.tools
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 src
	$(BIN)/pyright --pythonpath $(BIN)/python tests/public/typing_usage.py

# Workflows, issue forms and the like against their schemas and zizmor's audits, and cibuildwheel's settings.
workflows: $(VENV)/.tools
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms \
	  $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/pre-commit validate-config
	$(BIN)/zizmor --offline --no-progress .github
	for platform in linux macos; do \
	  $(BIN)/cibuildwheel --print-build-identifiers --platform $$platform || exit 1; done

# What would be released: sdist, pure wheel, repaired wheel, each tested without the checkout.
wheels: $(VENV)/.tools
	$(BUILD) .ci/wheels $(BIN)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first run also makes an environment for each peer, below .benchmarks/, or in the folder that
# AIOMULTIPROCESS_BENCHMARKS names, which several checkouts may share. Each version of Python has
# figures of its own, docs/benchmarks-VERSION.json; ARGS=--page writes the page from them again.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/suite.py $(if $(QUICK),--quick) $(ARGS)

compare: $(INSTALLED)
	$(BIN)/python benchmarks/compare.py $(ARGS)

# The site, from docs/: warnings are errors. DOCS_ONLINE=1 links the names of other projects.
SITE ?= build/site
docs: $(VENV)/.docs
	$(BIN)/python -Pm sphinx --fail-on-warning --keep-going --quiet -b html \
	  -d $(VENV)/build/doctrees docs $(SITE)
	@echo "the site is in $(SITE)"

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) 8000

# What the fragments in changes/ would add to the changelog; `towncrier build` does it.
changelog: $(VENV)/.tools
	$(BIN)/towncrier build --draft --version next

clean:
	rm -rf .venv build dist wheelhouse *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.made:
	@echo "making an environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@# pip of 2023 needs 45 s of CPU to choose what the tests need, that of 2026 needs 18
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@mkdir $(VENV)/build
	@printf '[build]\nbuild_base = %s/build\n[egg_info]\negg_base = %s/build\n' \
	  '$(abspath $(VENV))' '$(abspath $(VENV))' >$(VENV)/build.cfg
	@touch $@

$(LISTED): $(VENV)/.made
	@rm -f $(VENV)/.sources-*
	@touch $@

$(INSTALLED): $(VENV)/.made $(LISTED) $(SOURCES)
	@echo "installing aiomultiprocess[$(EXTRA)] into $(VENV)"
	rm -rf $(VENV)/build/lib* $(VENV)/build/bdist*
	$(BUILD) $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[$(EXTRA)]'
	touch $(if $(filter test,$(EXTRA)),$(addprefix $(VENV)/,.demo .docs .installed-test-core)) $@

# What is installed has its extras too: where those alone are added, nothing is built once more.

# The demo needs two packages, and the library itself; what `make test` has installed will do.
$(VENV)/.demo: $(VENV)/.made $(LISTED) $(SOURCES)
	@echo "building aiomultiprocess (its C extension takes a minute or more), and installing it"
	@echo "with what the demo needs, aiohttp and tqdm, into $(VENV)"
	@rm -rf $(VENV)/build/lib* $(VENV)/build/bdist*
	@$(BUILD) $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[demo]'
	@touch $@

$(VENV)/.cluster: $(VENV)/.demo
	@echo "installing distributed into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'aiomultiprocess[dask]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'aiomultiprocess[bench]'
	touch $@

# What the site needs: Sphinx, and the library, whose docstrings it shows; `make test` has installed both.
$(VENV)/.docs: $(VENV)/.made $(LISTED) $(SOURCES)
	rm -rf $(VENV)/build/lib* $(VENV)/build/bdist*
	$(BUILD) $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[docs]'
	touch $@

$(VENV)/.tools: pyproject.toml | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'aiomultiprocess[dev]'
	touch $@
