#!/usr/bin/env bash
# One machine: starts the ranks of a deployment with torchrun, on a free port.
set -euo pipefail

usage() {
    cat >&2 <<TEXT
usage: launch/one_machine.sh RANKS FILE [JOB OPTION ...]

  RANKS   ranks to start: tp_degree x pp_degree x dp_degree of the deployment
  FILE    deployment file (TOML or JSON)
  PYTHON  (environment) the Python to use; default: .venv/bin/python of this repository if it is there, else python3

example: launch/one_machine.sh 6 configs/demo.toml
TEXT
    [ $# -eq 0 ] || echo "launch/one_machine.sh: $*" >&2
    exit 2
}

[ $# -ge 2 ] || usage
ranks=$1 file=$2
shift 2
[[ $ranks =~ ^[1-9][0-9]*$ ]] || usage "RANKS must be a positive number, not '$ranks'"
[ -r "$file" ] || usage "'$file' cannot be read; name a deployment file"

venv="$(dirname -- "${BASH_SOURCE[0]}")/../.venv/bin/python"
python=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || echo python3)}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} # a laptop's host name often resolves to nothing
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$ranks" -m hybrid_runtime.job "$file" "$@"
