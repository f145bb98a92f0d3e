#!/usr/bin/env bash
# Runs the tests and the linter in the project's .venv, which it makes, two files of tests at a time. Arguments go to
# pytest: ./test.sh -k harden; with -n 0 one process runs all tests, and their output can be seen as they run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
make_venv requirements.txt requirements-dev.txt
cd "$project"
"$venv/bin/python" -m ruff check .
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
exec "$venv/bin/python" -m pytest -q tests -n 2 --dist loadfile --no-loadscope-reorder "$@"
