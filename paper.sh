#!/usr/bin/env bash
# The paper's Tables 1 and 2 at their own scale, WRN-16-8: the baseline and the deep split first, then the other rows of
# Table 2, then Table 1's other columns. The tables are printed after every run; stopped, the same command goes on.
#   ./paper.sh                    the paper's settings: 400 epochs of grouping, 240 of the rest, 90 images a step
#   ./paper.sh --budget short     the same cells in 112,500 steps instead of 2,960,000, grouped as group.sh does:
#                                 from the baseline, other gammas, no dropout
#   ./paper.sh --budget better    meant to be better than the paper, same networks: longer than short, smoothed labels,
#                                 taught by the dense one
#   ./paper.sh --plan             runs nothing: measures what the three take here, and tells the hours, here and on a GPU
#   ./paper.sh --budget short --only 2-2-2/splitnet --seeds 0,1,2      these cells (further arguments are tables.py's)
#   ./paper.sh --budget short --print                                  the tables so far
# A branch reads all of its parent's channels, as the counts in the paper's Table 2 have it (--branch_input group: not).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
budget=paper plan= arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=${2:-} && shift $(($# > 1)) ;;
    --budget=*) budget=${1#--budget=} ;;
    --plan) plan=1 ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
case $budget in
  paper | short | better) ;;
  *)
    echo "paper.sh: --budget is '$budget'; it must be paper, short or better" >&2
    exit 1
    ;;
esac
set -- ${arguments[@]+"${arguments[@]}"}
case " $* " in *' --help '* | *' -h '*) [ -n "$plan" ] || sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;; esac
find_python
if [ -n "$plan" ]; then exec "$python" -m paper.estimate "$@"; fi
case " $* " in *' --print '*) ;; *) need_data "$@" ;; esac
exec "$python" -m paper.tables all --recipe "$budget" --branch_input all --data_dir "$data" \
  --out "$runs/paper/$budget" "$@"
