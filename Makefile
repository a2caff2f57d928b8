# The README's two commands, and what CI runs. Each is also there as plain pip and python lines.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-fast test-slow test-long lint docs recipes clean

demo: $(VENV)/demo
	$(BIN)/python train.py binarize=ffnn values=pm1

# one worker a core, one thread each
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# side by side: types are checked on one core
test: $(VENV)/dev
	$(MAKE) --jobs=2 lint test-fast

test-fast: $(VENV)/dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/dev
	$(PYTEST) -m slow

# All cases of the promises in docs/promises.md, of which test-slow takes a sample. Stopped and started again, it goes on.
test-long: $(VENV)/dev
	BITMAPS_LONG=$(abspath build/long) $(PYTEST) -m slow tests/long

# the hooks of .pre-commit-config.yaml, on everything
lint: $(VENV)/dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

docs: $(VENV)/dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/docs
	@echo "build/docs/index.html"

# torch first, by its exact version: what another package asks for as a range may be a newer and much larger build
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	touch $@

# built anew when the kernels have changed
KERNELS = build_kernels.py $(wildcard bitmaps/packed/native/*.[ch] bitmaps/packed/native/*/*.[ch])

$(VENV)/demo: $(VENV)/torch pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[offline]'
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml $(KERNELS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The tables of docs/recipes.md: PTB=<folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt>. Each
# command may be stopped and started again: jobs that are done are skipped. Several at a time, one
# thread each: make recipes PTB=<folder> JOBS=2
PTB ?=
BUDGET ?= short
SEEDS ?= 0,1,2
JOBS ?= 1
RUNS = runs/ptb
PARALLEL = $(filter-out 1,$(JOBS))
PYTHON_RUN = $(if $(PARALLEL),OMP_NUM_THREADS=1) $(BIN)/python
SWEEP = data.dir=$(PTB) hydra.sweep.dir=$(RUNS)/$(BUDGET) \
    $(if $(PARALLEL),hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS))
TRAIN = $(PYTHON_RUN) train.py -m experiment=ptb_$(BUDGET) seed=$(SEEDS) $(SWEEP)
SCORE = $(PYTHON_RUN) evaluate.py -m data=ptb measure=none mask_sets=5 references=false $(SWEEP)
OURS = $(RUNS)/$(BUDGET)/binarize-layers+experiment-ptb_$(BUDGET)+seed-
comma = ,
PUBLISHED_short = students,bwn,bibert,bit,paretoq,bitnet,onebit
PUBLISHED_long = paretoq,bibert
# bitnet's map is that of bit, and onebit's is ours: the same run under the same loss
COMMON_short = students,bwn,bibert,bit,paretoq
COMMON_long = paretoq,bibert

recipes: $(VENV)/dev $(RUNS)/teacher/model
	$(TRAIN) binarize=layers,ffnn,all
	$(TRAIN) binarize=layers values=01
	$(TRAIN) binarize=layers embeddings=bit
	$(TRAIN) binarize=layers activations=bit
	$(TRAIN) binarize=layers activations=int6 activations_from=0.5
	$(TRAIN) recipe=$(PUBLISHED_$(BUDGET))
	$(TRAIN) recipe=$(COMMON_$(BUDGET)) loss=common
	$(TRAIN) binarize=none loss=tokens optimizer.lr=5e-5
	for seed in $(subst $(comma), ,$(SEEDS)); do \
	    $(SCORE) checkpoint=$(OURS)$$seed embeddings=fp16,int8,int4 && \
	    $(SCORE) checkpoint=$(OURS)$$seed activations=int8,int6 || exit 1; done
	$(SCORE) model=hub model.source=$(RUNS)/teacher binarize=layers
	$(SCORE) model=hub model.source=$(RUNS)/teacher binarize=layers scale=row binarize.scope=matrices
	$(SCORE) model=hub model.source=$(RUNS)/teacher binarize=layers scale=rank_one \
	    binarize.scope=matrices calibrate=512
	$(BIN)/python -m bitmaps.report $(RUNS)/teacher $(RUNS)/$(BUDGET) --output $(RUNS)/report \
	    --against teacher --against binarize-layers+experiment-ptb_$(BUDGET)+seed-0 \
	    --json $(RUNS)/$(BUDGET).json

# the full-precision model that every recipe starts from
$(RUNS)/teacher/model:
	$(BIN)/python train.py experiment=ptb data.dir=$(PTB)

clean:
	rm -rf $(VENV)
