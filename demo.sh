#!/usr/bin/env bash
usage='The whole way in a few minutes on a CPU: data, dense baseline, grouping, splitting and fine-tuning, evaluation, report.
  ./demo.sh          synthetic images (no network needed beyond pip)
  ./demo.sh --real   CIFAR-100, fetched if it is missing (169 MB)
  ./demo.sh --seed 3 other images, initial values and shuffling (after --real, if both)
A small network (WRN-10-1) and short runs: it shows that everything works, not the numbers of the paper. What it makes
stands in demo/ (or in the folder DEMO_DIR).'
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"
kind=synthetic seed=0
case " $* " in *' --help '* | *' -h '*) echo "$usage" && exit ;; esac
if [ "${1:-}" = --real ]; then kind=real && shift; fi
if [ "${1:-}" = --seed ] && [[ ${2:-} =~ ^[0-9]{1,9}$ ]]; then seed=$2 && shift 2; fi
if [ $# -gt 0 ]; then
  echo "demo.sh: cannot use '$*': ./demo.sh takes nothing, --real for CIFAR-100, or --seed and a number" >&2
  exit 2
fi
make_venv requirements.txt
python=$venv/bin/python
out=${DEMO_DIR:-$project/demo}/$kind
if [ "$seed" != 0 ]; then out=$out-seed$seed; fi
out=${out#"$PWD"/} # as short as it can be told
if [ $kind = synthetic ]; then
  data=$out/data
  "$python" "$project/download_cifar100.py" --synthetic --images_per_class 100 --seed "$seed" --data_dir "$data"
  batch_size=45 baseline_steps=700 group_steps=150 split_steps=300 split_lr=0.1
else
  need_data
  batch_size=90 baseline_steps=2000 group_steps=2000 split_steps=1500 split_lr=0.05
fi

stage() {
  local mode=$1 steps=$2
  shift 2
  printf '\n--- %s: %s steps ---\n' "$mode" "$steps"
  "$python" "$project/train.py" --mode "$mode" --data_dir "$data" --train_dir "$out/$mode" --max_steps "$steps" \
    --batch_size "$batch_size" --brief --lr_schedule cosine --val_interval 500 --group_summary_interval 500 \
    --checkpoint_interval 500 --seed "$seed" --dropout_keep_prob 1 "$@"
}
evaluate() {
  "$python" "$project/eval.py" --data_dir "$data" --output_file "$out/$1.json" --checkpoint "$2" "${@:3}" >"$out/$1.txt"
}

stage baseline $baseline_steps --k 1 --num_residual_units 1 --initial_lr 0.2 --lr_warmup 0.2
# Grouping from the trained baseline and its spectral structure, with a larger weight of the split, which rises, and a
# larger learning rate of the assignments than the paper's: what takes it 400 epochs has to happen within a few.
stage group $group_steps --basemodel "$out/baseline" --assignment_start spectral \
  --gamma1 5 --gamma2 20 --gamma2_ramp 0.5 --gamma3 30 --assignment_lr_scale 40 --initial_lr 0.05
stage split $split_steps --basemodel "$out/group" --initial_lr $split_lr

printf '\n--- evaluation on the test images ---\n'
evaluate dense "$out/baseline"
evaluate grouped "$out/group"
evaluate hardened "$out/group" --harden
evaluate fine-tuned "$out/split/best"
results=()
for name in dense grouped hardened fine-tuned; do results+=("$name=$out/$name.json"); done
"$python" -m serving.report "${results[@]}" --out "$out/report.html" >/dev/null
echo "report to open in a browser: $out/report.html"
echo "weights ordered by group, from start to end: $out/group/pictures"
echo "curves: ${venv#"$PWD"/}/bin/tensorboard --logdir $out"
"$python" -m splitnet.reporting.compare "${results[@]}"
