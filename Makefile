.DEFAULT_GOAL := help
SHELL := /bin/bash
TARGETS := help setup train demo-full plan resume sample play own eval study bench bench-gpu faults docs docs-serve pictures test test-seconds test-full lint types tensorboard
.PHONY: $(TARGETS)

PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(shell command -v python$(version))) python3)
BIN := .venv/bin
# PyPI's torch for Linux brings gigabytes of CUDA. Where there is neither an NVIDIA GPU nor Slurm, whose nodes may have one,
# PyTorch's own index has a torch without; `make setup CPU_TORCH=` takes PyPI's all the same.
CPU_TORCH ?= $(if $(shell command -v nvidia-smi srun)$(filter-out Linux,$(shell uname)),,https://download.pytorch.org/whl/cpu)
EXP ?= debug
NAME ?= mask_kind
RUN ?= runs/$(EXP)/latest
MINUTES ?= 30
ARGS ?=
RUNS ?= runs
READY := .venv/ready
DEV := .venv/ready-to-test
FINETUNE := .venv/ready-to-finetune
# A machine with a GPU has a torch of its own, which is not to be replaced: bench-gpu sets nothing up.
GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,python3)

# make passes over a variable that nothing reads, and does the targets before a word that is none: other work than was
# meant. A name with small letters is a setting; one of capitals may be for the environment of what is run.
LETTERS := a b c d e f g h i j k l m n o p q r s t u v w x y z
GIVEN := $(foreach name,$(filter-out -*-%,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifeq ($(MAKELEVEL),0)
$(foreach name,$(GIVEN),$(if $(strip $(foreach letter,$(LETTERS),$(findstring $(letter),$(name)))),$(error got $(name)=, which nothing reads; a setting goes into quotes: ARGS="trainer.max_steps=10")))
endif
$(foreach word,$(filter-out $(TARGETS) $(BIN)/% .venv/%,$(MAKECMDGOALS)),$(error got $(word), none of `make help`; an experiment is EXP=NAME, a run RUN=runs/EXP/NAME, a caption PROMPT="..."))

# To the command as it was typed: neither make nor the shell runs what is in it.
export LUMOS_PROMPT := $(value PROMPT)
export LUMOS_VIDEOS := $(value VIDEOS)
unexport PROMPT VIDEOS

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEV) ## create .venv and install everything at the pinned versions, what the tests need too
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	-$(if $(CPU_TORCH),$(BIN)/pip install --quiet --no-deps --retries 0 --timeout 5 -c constraints.txt --extra-index-url $(CPU_TORCH) torch)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[play]'
	@touch $@

# A first clip need not wait for what only the tests import.
$(DEV): $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# Only what trains an adapter needs PEFT.
$(FINETUNE): $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[finetune]'
	@touch $@

train: $(READY) $(if $(findstring finetune,$(EXP)),$(FINETUNE)) ## train an experiment: EXP=debug ARGS="trainer.max_steps=10 seed=1"; with a name, again and again: ARGS="run.name=NAME"
	$(BIN)/lumos train $(EXP) $(if $(findstring run.name=,$(ARGS)),--resume-or-start) $(ARGS)

demo-full: $(READY) ## train the richer world in its three stages, hours: ARGS="run.dir=runs"
	for stage in demo_full_plain demo_full_singles demo_full; do $(BIN)/lumos train $$stage $(ARGS) || exit; done

plan: $(READY) ## what an experiment needs and costs: EXP=t2v_1b ARGS="gpu=h100-80g gpus=48"
	$(BIN)/lumos plan $(EXP) $(ARGS)

resume: $(READY) ## go on with a run: RUN=runs/EXP/NAME
	$(BIN)/lumos resume $(RUN) $(ARGS)

sample: $(READY) ## make a clip: PROMPT="a red circle moves left" OUT=DIR RUN=runs/EXP/NAME ARGS="--gif"
	$(BIN)/lumos sample $(if $(filter-out file,$(origin RUN) $(origin EXP)),--run $(RUN)) $(if $(value PROMPT),--prompt="$$LUMOS_PROMPT") $(if $(OUT),--out $(OUT)) $(ARGS)

play: $(READY) ## a page in the browser to make clips with a model: ARGS="runs/EXP/NAME --port 0"
	$(BIN)/lumos play $(ARGS)

own: $(READY) ## from a folder of videos to a model and a page of its clips: VIDEOS=FOLDER MINUTES=30 ARGS="--size 96x64"
	$(BIN)/lumos own $(if $(value VIDEOS),"$$LUMOS_VIDEOS") --minutes $(MINUTES) $(ARGS)

eval: $(READY) ## measure a run, with intervals: RUN=runs/EXP/NAME ARGS="--only loss,fidelity"
	$(BIN)/lumos eval $(RUN) $(ARGS)

study: $(READY) $(if $(findstring finetune,$(NAME)),$(FINETUNE)) ## answer a question with intervals: NAME=mask_kind, within an hour on two cores
	$(BIN)/lumos study $(NAME) $(ARGS)

tensorboard: $(READY) ## look at every run under RUNS=runs
	$(BIN)/tensorboard --logdir $(RUNS)

bench: $(READY) ## speed and memory beside the release's way, as a table and bench.json: ARGS="generation --rounds 5"
	$(BIN)/python -m bench $(ARGS)

bench-gpu: ## what only a GPU can tell, in the order of value, and gpu.json: ARGS="--minutes 7 --cases attention clip"
	$(GPU_PYTHON) -m bench.gpu $(ARGS)

faults: $(DEV) ## what must never happen, tried and counted, and faults.json: ARGS="shards videos --seed 1 --scale 0.1"
	$(BIN)/python -m faults $(ARGS)

# What Python compiles is kept, whatever the shell says: dozens of processes would each compile project and tests anew.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n auto --dist worksteal

test: $(DEV) ## the quick tests
	$(PYTEST) $(ARGS)

test-seconds: $(DEV) ## whole runs and several processes, which take seconds each
	$(PYTEST) -m "seconds and not slow and not gpu" $(ARGS)

test-full: $(DEV) ## all tests that run on a CPU, minutes
	$(PYTEST) -m "not gpu" $(ARGS)

lint: $(DEV) ## style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: $(BIN)/mkdocs ## build the site, strictly: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet it counts no warnings, and passes over dead links

docs-serve: $(BIN)/mkdocs ## show the site on this machine
	$(BIN)/mkdocs serve

$(BIN)/mkdocs: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'

pictures: $(READY) ## draw the pictures of README and site anew
	$(BIN)/python docs/pictures.py

types: $(DEV) ## types
	$(BIN)/mypy
