#!/usr/bin/env bash
# The paper's tables: ./tables.sh counts, ./tables.sh 1, ./tables.sh 2. Further arguments are tables.py's:
#   ./tables.sh 1 --k 1 --seeds 0,1,2
#   ./tables.sh 1 --k 1 --print
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
case " $* " in
  '  ' | *' counts '* | *' --print '*) ;; # no images needed
  *) need_data "$@" ;;
esac
exec "$python" "$project/tables.py" --data_dir "$data" --out "$runs/tables" "$@"
