#!/usr/bin/env bash
# The paper's tables: ./tables.sh counts, 1, 2, or all (1 and 2); ./tables.sh groups: how good the groups are. Further
# arguments are tables.py's:
#   ./tables.sh 1 --k 1 --seeds 0,1,2
#   ./tables.sh 1 --k 1 --print
# ./tables.sh 5: evaluation time on several devices. Further arguments are table5.py's.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
find_python
if [ "${1:-}" = 5 ]; then exec "$python" -m paper.table5 "${@:2}"; fi # times networks that it makes itself
case " $* " in
  '  ' | *' counts '* | *' --print '*) ;; # no images needed
  *) need_data "$@" ;;
esac
exec "$python" -m paper.tables --data_dir "$data" --out "$runs/tables" "$@"
