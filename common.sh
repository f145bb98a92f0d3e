# Sourced by the scripts: the project's folder, its Python, and its data. Nothing here is an experiment's setting.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$project/.venv
data=$project/cifar100/train_val_split
runs=$project/runs

# Makes .venv and installs the given requirements files into it, once for each state of these files.
make_venv() {
  local stamp="$venv/.installed" want
  want=$(cd "$project" && cat "$@")
  if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
  local found=
  for found in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10} ''; do
    if [ -n "$found" ] && "$found" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then break; fi
  done
  if [ -z "$found" ]; then
    echo "$(basename "$0"): no Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python" >&2
    exit 1
  fi
  echo "making $venv and installing $* (a minute or two)"
  [ -x "$venv/bin/python" ] || "$found" -m venv "$venv"
  local file
  for file in "$@"; do "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$project/$file"; done
  printf '%s\n' "$want" >"$stamp"
}

# Sets $python: the project's .venv, else a Python with TensorFlow that is on the path, else a new .venv.
find_python() {
  if [ ! -x "$venv/bin/python" ] && python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("tensorflow"))' 2>/dev/null; then
    python=python3
    return
  fi
  [ -x "$venv/bin/python" ] || make_venv requirements.txt
  python=$venv/bin/python
}

# Fetches CIFAR-100 where it is missing, unless the arguments name another folder or only ask for help.
need_data() {
  local argument
  for argument in "$@"; do
    case $argument in --data_dir | --data_dir=* | --help | -h) return ;; esac
  done
  if [ ! -e "$data/names.json" ]; then "$python" "$project/download_cifar100.py" --data_dir "$data"; fi
}
