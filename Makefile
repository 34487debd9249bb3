PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-slow test-all reliability test-newest lint docs benchmark gpu clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make the environment in .venv, or bring it up to date

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP) ## the main job on real solar-cell images: precompute, gallery, train, score
	$(BIN)/python cli.py precompute --dataset elpv --category mono --image-size 128 --store data/cache/demo.zarr
	$(BIN)/python cli.py inspect data/cache/demo.zarr --html runs/demo/gallery
	$(BIN)/python cli.py train --store data/cache/demo.zarr --steps 300 --out runs/demo --overwrite

test: $(STAMP) ## the tests that take seconds, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(STAMP) ## the tests that start processes or take longer, in two processes
	$(BIN)/python -m pytest -n 2 -m slow

test-all: test test-slow ## every test

reliability: $(STAMP) ## hundreds of random kills, thousands of values of every option; about an hour
	$(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/reliability/campaign_kills.py
	EXAMPLES=3000 $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_any_value.py

test-newest: ## the main job and the fast tests with the newest packages that pyproject.toml allows, no constraints
	$(PYTHON) -m venv --clear $(NEWEST)
	# s3fs first: pip would try every botocore, of which s3fs allows few and moto many.
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[demo,report,s3]'
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	rm -rf $(NEWEST)/demo
	$(NEWEST)/bin/python cli.py precompute --dataset elpv --category mono --image-size 128 --store $(NEWEST)/demo/mono.zarr
	$(NEWEST)/bin/python cli.py inspect $(NEWEST)/demo/mono.zarr --verify --html $(NEWEST)/demo/gallery
	$(NEWEST)/bin/python cli.py train $(NEWEST)/demo/mono.zarr --out $(NEWEST)/demo/run
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile -m 'not slow'

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP) ## write the tables and figures that docs/ shows again
	$(BIN)/python docs/build.py

benchmark: $(STAMP) ## how fast precompute and train are, as ratios measured side by side
	$(BIN)/python benchmarks/precompute.py
	$(BIN)/python benchmarks/stream.py

gpu: ## IMAGES=DIR: the tests that need a GPU, then its speed on PNG files; installs nothing; at most 8 minutes
	@test -n "$(IMAGES)" || { echo "give a folder of PNG files: make gpu IMAGES=DIR"; exit 2; }
	timeout --kill-after=5 85 $(PYTHON) -m pytest -m gpu; tests=$$?; \
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py $(IMAGES) $(OPTIONS) && exit $$tests

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) $(NEWEST) data/cache runs build *.egg-info
