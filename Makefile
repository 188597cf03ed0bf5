# Two commands: `make train` and `make test`. Both set up what they need.
PYTHON ?= python3
PY := .venv/bin/python
ARGS ?=
# tests in two processes: those that start a Ray in one of them, each other file in either
IN_TWO := -n 2 --dist loadgroup --no-loadscope-reorder

# Prometheus and promtool: those on the PATH, or Debian's, unpacked and not installed
PROMETHEUS := $(if $(shell command -v promtool),,.tools/prometheus/usr/bin/promtool)
# schemas of custom resources, as docs/operations.md says where to get them
CRDS ?= .tools/crds
# gzipped alignments, as docs/sequences.md says where to get them
ALIGNMENTS ?= ../shared/msa
WITH_K8S = PATH="$(CURDIR)/.venv/bin:$(CURDIR)/.tools/prometheus/usr/bin:$$PATH" CRDS="$(CRDS)"

.PHONY: setup train test check lint types fast k8s-check fuzz mutants experiments sequences docs notebooks clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: setup  ## train the default model on this machine (ARGS="key=value ..." overrides)
	$(PY) -m pipeline.train $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup
	$(PY) -m mypy

fast: setup
	$(PY) -m pytest -m "not slow and not ray and not k8s" $(IN_TWO)

check: lint types fast  ## the quick one

ifneq ($(wildcard $(CRDS)),)
test: .venv/.k8s $(PROMETHEUS)  ## the whole suite; the manifests too where CRDS is a folder of schemas
	$(WITH_K8S) $(PY) -m pytest $(IN_TWO)
else
test: setup
	$(PY) -m pytest -m "not k8s" $(IN_TWO)
endif

k8s-check: .venv/.k8s $(PROMETHEUS)  ## manifests against their schemas, alerts and dashboard against a real Prometheus
	$(WITH_K8S) $(PY) -m pytest -m k8s $(IN_TWO)

fuzz: setup  ## hostile command lines, 2,000 of them: each is accepted, or refused in one line
	$(PY) -m tests.fuzz --cases 2000 --seed 0 --json docs/fuzz.json

mutants: setup  ## slips put into the code one at a time: the tests must catch each
	$(PY) -m tests.mutants --docs docs

.venv/.k8s: .venv/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,k8s]'
	@touch $@

.tools/prometheus/usr/bin/promtool:
	mkdir -p .tools
	cd .tools && (apt-get download prometheus || (apt-get update && apt-get download prometheus))
	dpkg -x .tools/prometheus_*.deb .tools/prometheus

experiments: setup  ## the figures in README.md and docs/, from the runs themselves (about 80 minutes; brings JAX and other libraries)
	$(PY) -m benchmarks.digits_rbm --json docs/digits_rbm.json
	$(PY) -m benchmarks.staleness --docs docs --processes 2
	$(PY) -m benchmarks.pipeline --json docs/pipeline_benchmark.json
	$(PY) -m benchmarks.front_door --json docs/front_door.json
	$(PY) -m benchmarks.scaling --docs docs
	$(PY) -m benchmarks.systems --docs docs
	$(PY) -m benchmarks.compositions --docs docs
	$(PY) -m benchmarks.every_objective --docs docs
	$(PY) -m benchmarks.sweep --docs docs
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-reference.txt -e '.[dev,reference]'
	$(PY) -m benchmarks.blackjax_reference --json docs/blackjax_reference.json
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-peers.txt -e '.[dev,peers]'
	$(PY) -m benchmarks.peers --json docs/peers_benchmark.json
	$(PY) -m benchmarks.time_to_likelihood --tune --docs docs

sequences: setup  ## the figures in docs/sequences.md, from the alignments that it names
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-sequences.txt -e '.[dev,sequences]'
	$(PY) -m benchmarks.sequences --alignments $(ALIGNMENTS) --json docs/sequences.json
	$(PY) -m benchmarks.lattice_proteins --alignments $(ALIGNMENTS) --json docs/lattice_proteins.json

docs: setup  ## the pages and lists that are made from the code
	$(PY) -m pipeline.reference kernels > docs/kernels.md
	$(PY) -m pipeline.reference objectives > docs/objectives.md
	$(PY) -m pipeline.reference configmaps > conf/kustomization.yml

notebooks: setup  ## the outputs of the notebooks in examples/, from running them
	$(PY) -m benchmarks.notebooks

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache
