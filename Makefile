.PHONY: help demo sweep-demo test check format setup clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

setup:  ## the virtual environment .venv, pinned (VARIANT=cpu or cuda to choose)
	@bash scripts/setup.sh

demo: setup  ## synthetic data → anchor → reinforcement → evaluation, into runs/demo
	.venv/bin/starec data prepare synthetic --out runs/demo-data --negatives 7 --force
	.venv/bin/starec train recipes/demo.yaml --run-dir runs/demo --overwrite

sweep-demo: setup  ## a sweep of short trials with a tiny model, into runs/sweep-demo
	.venv/bin/starec data prepare synthetic --out runs/demo-data --negatives 7 --force
	rm -rf runs/sweep-demo
	.venv/bin/starec tune recipes/sweep-demo.yaml --space recipes/spaces/sweep-demo.yaml \
		--out runs/sweep-demo

test: setup  ## all tests, on the real engines
	.venv/bin/python -m pytest

check: setup  ## format, lint, types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: setup  ## rewrite the files in the project's format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:  ## remove what runs and installs left behind
	rm -rf .venv runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
