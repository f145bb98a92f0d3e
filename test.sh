#!/usr/bin/env bash
# Runs the tests and the linter in the project's .venv, which it makes, three files of tests at a time, since some wait.
# Arguments go to pytest: ./test.sh -k harden; with -n 0 one process runs all, and their output can be seen as they run.
#   ./test.sh --fast    without the tests that are marked as slow
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
make_venv requirements.txt requirements-dev.txt
cd "$project"
"$venv/bin/python" -m ruff check .
for argument in "$@"; do
  shift
  if [ "$argument" = --fast ]; then set -- "$@" -m 'not slow'; else set -- "$@" "$argument"; fi
done
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
exec "$venv/bin/python" -m pytest -q tests -n 3 --dist loadfile --no-loadscope-reorder "$@"
