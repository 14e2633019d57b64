#!/usr/bin/env bash
# Test with the lowest versions that pyproject.toml allows, in an environment of its own:
# tools/lowest_versions.sh [PYTEST ARGUMENTS]    # without arguments, the parts that depend most on other packages
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
bin="$work/venv/bin"
"$bin/python" -m pip install --quiet uv
"$bin/uv" pip install --quiet --python "$bin/python" --resolution lowest-direct --editable '.[dev]'
"$bin/uv" pip list --python "$bin/python"
[ $# -gt 0 ] || set -- tests/teachers tests/config tests/flow tests/transformer tests/models tests/io tests/test_extras.py
"$bin/python" -m pytest -n0 -m "not slow" "$@"
