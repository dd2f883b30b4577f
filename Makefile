# Every target that needs it makes .venv and installs into it; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Folder that holds cifar10_jpeg.tar.gz: train/<class>/*.jpg and test/<class>/*.jpg; tinyimagenet60.tar.gz:
# train/<class>/*.JPEG, val/<class>/*.JPEG and index.csv with columns file, split, fine and coarse; carla_road (VOC)
# and road_daynight (COCO): road frames with boxes
EFFVL_TEST_DATA ?= ../shared/data
export EFFVL_TEST_DATA

.PHONY: demo test test-slow test-faults test-slurm slurm-up lint assets tables

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/effvl prune-tokens --keep 0.6

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The claims of the miniature experiments: about 10 minutes on two cores.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

# Malformed input in large numbers (10,000 examples per parser): about 7 minutes on one core.
test-faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m faults

# The batch scripts on a real SLURM: about 6 minutes. Needs root on a Debian machine that slurm-up may change.
test-slurm: $(READY) slurm-up
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m slurm tests/slurm

# A single-node SLURM on this machine, from the distribution's packages.
slurm-up:
	tests/slurm/up.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The shipped tiny:clip: about 12 minutes on one core.
assets: $(READY)
	$(BIN)/python -m effvl_cli.models.merges
	OMP_NUM_THREADS=1 $(BIN)/effvl pretrain --recipe recipes/pretrain/clip-shapes.yaml --out runs/assets --fresh
	mkdir -p effvl_cli/models/assets/tiny-clip
	cp runs/assets/checkpoint.safetensors runs/assets/manifest.json effvl_cli/models/assets/tiny-clip/

# Miniature experiments: sweeps with claims. Each file's description says how long it takes.
mini-%: recipes/mini/%.yaml $(READY)
	@sed -n 's/^description: //p' $<
	$(BIN)/effvl sweep $<
	$(BIN)/effvl table $<

mini-pretrain mini-pretrain-search mini-prune-blocks mini-prune-blocks-published mini-prune-tokens-cifar \
mini-prune-tokens-ranked table-pretrain-cifar10: runs/data/cifar10
mini-pretrain-transfer: runs/data/cifar10 runs/data/tinyimagenet60
mini-continual: runs/data/cifar10
mini-prune-blocks-published: runs/data/cifar10-resnets
mini-continual-tinyimagenet: runs/data/tinyimagenet60-tasks/tasks.yaml
mini-prompt-tune-cifar: runs/data/cifar10.csv
mini-detect-carla: runs/data/carla_road
mini-detect-daynight: runs/data/road_daynight runs/data/carla_road

# Sweeps for the tables of the papers, for clusters: run as above, on your own data.
table-%: recipes/tables/%.yaml $(READY)
	@sed -n 's/^description: //p' $<
	$(BIN)/effvl sweep $<
	$(BIN)/effvl table $<

# All of them, one after the other: weeks on one GPU; on a cluster, recipes/slurm/sweep-array.sbatch for each.
tables: $(patsubst recipes/tables/%.yaml,table-%,$(wildcard recipes/tables/*.yaml))

# One thread unless told otherwise: on cores shared with other programs, two threads wait for each other.
bench-%: export OMP_NUM_THREADS ?= 1
bench-%: $(READY)
	$(BIN)/python tests/bench/bench_$(subst -,_,$*).py $(ARGS)

# All figures that need a GPU, in at most eight minutes on one; rows and checklist in runs/bench-gpu.json.
bench-gpu: $(READY)
	$(BIN)/python -m tests.bench.bench_gpu

# Packages that benchmarks compare with, each in its own folder outside the environment.
.peers/lightly: PEER := lightly==1.6.0
.peers/torch-pruning: PEER := torch-pruning==1.6.1
.peers/cleanlab: PEER := cleanlab==2.9.0 pandas==3.1.1 termcolor==3.3.0
.peers/faiss-cpu: PEER := faiss-cpu==1.15.1
.peers/avalanche-lib: PEER := avalanche-lib==0.6.0 \
	absl-py==2.5.1 beautifulsoup4==4.15.0 certifi==2026.10.19.post1 charset-normalizer==3.5.3 click==8.5.1 \
	dill==0.4.1 gdown==6.5.1 gitdb==4.0.12 gitpython==3.2.1 gputil==1.4.0 grpcio==1.85.3 idna==3.20 \
	lightning-utilities==0.15.3 markdown==3.11.3 opentelemetry-api==1.45.2 platformdirs==4.14.8 \
	protobuf==7.36.2 psutil==7.2.2 pytorchcv==0.0.74 qpsolvers==4.13.0 requests==2.34.2 sentry-sdk==2.75.0 \
	setproctitle==1.3.8 smmap==5.0.3 soupsieve==4.1.3 tensorboard==2.21.0 tensorboard-data-server==0.7.2 \
	torchmetrics==1.9.0 tqdm==4.70.1 urllib3==2.8.0 wandb==0.31.0 werkzeug==3.1.9 xxhash==4.1.0
.peers/%: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ $(PEER)

bench-pretrain: export PYTHONPATH := .peers/lightly
bench-pretrain: .peers/lightly

bench-prune-blocks: export PYTHONPATH := .peers/torch-pruning
bench-prune-blocks: .peers/torch-pruning

bench-suspects: export PYTHONPATH := .peers/cleanlab
bench-suspects: .peers/cleanlab

bench-cpr-mine: export PYTHONPATH := .peers/faiss-cpu:.
bench-cpr-mine: .peers/faiss-cpu

bench-continual: export PYTHONPATH := .peers/avalanche-lib
bench-continual: .peers/avalanche-lib

# Published CIFAR-10 ResNets, resnet20-12fca82f.th and resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10
runs/data/cifar10-resnets: $(wildcard $(EFFVL_TEST_DATA)/weights/*.th)
	mkdir -p $@
	cp $(EFFVL_TEST_DATA)/weights/*.th $@
	touch $@

# What pretrain/clip-cifar10 did not train on: a tenth of the training images, and the test images.
runs/data/cifar10.csv: runs/data/cifar10
	$(BIN)/python -m effvl_cli.data.held_out $<

# 12 tasks of 5 classes each, by the column `coarse` of the images' table.
runs/data/tinyimagenet60-tasks/tasks.yaml: runs/data/tinyimagenet60
	$(BIN)/effvl continual list-tasks --data csv:$</index.csv --by coarse --out $(@D) --fresh
	touch $@

# Road frames with boxes, as they are: VOC and COCO
runs/data/carla_road runs/data/road_daynight: runs/data/%: $(EFFVL_TEST_DATA)/%
	rm -rf $@
	mkdir -p runs/data
	cp -r $< $@
	touch $@

runs/data/tinyimagenet60: $(EFFVL_TEST_DATA)/tinyimagenet60.tar.gz
	mkdir -p $@
	tar -xzf $< -C $@
	touch $@

runs/data/cifar10: $(EFFVL_TEST_DATA)/cifar10_jpeg.tar.gz
	mkdir -p $@
	tar -xzf $< -C $@
	touch $@
