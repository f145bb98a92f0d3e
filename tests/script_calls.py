"""What the shell scripts call, with which arguments: a copy of them, with a .venv whose Python only prints these."""

import os
import shutil
import subprocess

import helpers


def copy(folder):
  """Copies the scripts to a folder with a Python that prints what it is called with, if that is a program of ours."""
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\nif [ "$1" = -m ] && [ "$2" != pip ]; then shift; set -- "program: $@"; fi\n'
    f'case "$1" in "{folder}"/*.py | "program: "*) printf "%s\\n" "$@" ;; esac\n')
  python.chmod(0o755)
  for name in os.listdir(helpers.PROJECT):
    if name == 'scripts':
      shutil.copytree(os.path.join(helpers.PROJECT, name), folder / name)
    elif name.endswith('.sh') or name.startswith('requirements'):
      shutil.copy(os.path.join(helpers.PROJECT, name), folder)
      if name.startswith('requirements'):
        shutil.copy(os.path.join(helpers.PROJECT, name), folder / '.venv' / ('installed-' + name))


def run(project, name, *arguments, **environment):
  """Runs a script from another folder: (exit code, list of (program, its arguments), stderr)."""
  done = subprocess.run(
    [project / name, *map(str, arguments)], cwd='/', env={**os.environ, **environment}, capture_output=True, text=True
  )
  calls = []
  for line in done.stdout.splitlines():
    if line.startswith(str(project)) and line.endswith('.py'):
      calls.append((os.path.basename(line), []))
    elif line.startswith('program: '):
      calls.append((line.removeprefix('program: '), []))
    else:
      calls[-1][1].append(line)
  return done.returncode, calls, done.stderr
