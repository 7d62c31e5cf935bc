# Everything happens in .venv; PIP_ARGS reaches pip, for instance PIP_ARGS='--index-url ...' for a CPU build of torch.
PYTHON ?= python3
PIP_ARGS ?=
EXTRAS := dev,train,eval,peers
BIN := .venv/bin
STAMP := .venv/.installed

# What make bench measures: photos with ImageNet-1k indices, and classifiers that judge them.
BENCH_DATA ?= ../shared/data/dev-imagenet1k-000.parquet
BENCH_CLASSIFIER ?= ../shared/classifiers/mobilenet_v1_075_192.onnx
BENCH_CODECS ?= slim,jpeg,jpeg2000,webp,avif,jxl,heic
BENCH_OUT ?= results/dev-imagenet1k.json
BENCH_ARGS ?=
JOBS ?= 2

.PHONY: demo test lint supply bench figures clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Licences of what is installed, and its known vulnerabilities where the service that knows them can be asked.
supply: $(STAMP)
	$(BIN)/python tools/licences.py $(EXTRAS)
	$(BIN)/python tools/audit.py

# Measures, and draws; an interrupted run is taken up by the same command.
bench: $(STAMP)
	$(BIN)/slim bench $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER) --codecs $(BENCH_CODECS) --jobs $(JOBS) \
		$(BENCH_ARGS) --overwrite -o $(BENCH_OUT)
	$(MAKE) figures

# Draws what is measured; the report shows photos of the data set.
figures: $(STAMP)
	$(BIN)/slim report $(BENCH_OUT) results/published/*.json -o report --photos $(BENCH_DATA) --classifier $(BENCH_CLASSIFIER)
	cp report/rate-accuracy.png docs/images/rate-accuracy.png

clean:
	rm -rf .venv build dist demo report .pytest_cache .hypothesis .mypy_cache .ruff_cache

# A second run is quick: pip runs again only when what it would install has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
