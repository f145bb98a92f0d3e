#!/usr/bin/env bash
# Starts a worker for eval.py --workers on this machine; it runs until Ctrl-C. Arguments are worker.py's:
#   scripts/worker.sh --port 2222                        for programs of this machine only
#   scripts/worker.sh --port 2222 --host 192.168.0.7     for all that can reach that address: trusted networks only
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
exec "$python" -m splitnet.parallel.worker "$@"
