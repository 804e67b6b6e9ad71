#!/usr/bin/env bash
# Removes torch's side packages where they don't import: nothing here needs them, and transformers
# fails on one that is there and broken. Not every index has them for a CPU's torch.
#   bash scripts/drop_side_packages.sh PYTHON
set -euo pipefail
python=${1:?name the Python that they are installed for, such as .venv/bin/python}
for package in torchvision torchaudio torchcodec; do
  if "$python" -m pip show --quiet "$package" 2>/dev/null &&
    ! "$python" -c "import $package" >/dev/null 2>&1; then
    echo "removing $package, which doesn't import here"
    "$python" -m pip uninstall --quiet --yes "$package"
  fi
done
