# Everything happens in .venv; PIP_ARGS reaches pip, for instance PIP_ARGS='--index-url ...' for a CPU build of torch.
PYTHON ?= python3
PIP_ARGS ?=
EXTRAS := dev,train,eval,peers
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist demo .pytest_cache .hypothesis .mypy_cache .ruff_cache

# A second run is quick: pip runs again only when what it would install has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
