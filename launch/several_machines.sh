#!/usr/bin/env bash
# Several machines: run this with the same settings on every one of them; torchrun's c10d rendezvous joins them.
set -euo pipefail

usage() {
    cat >&2 <<TEXT
usage: NNODES=N NPROC_PER_NODE=R RDZV_ENDPOINT=HOST:PORT [NODE_RANK=K] launch/several_machines.sh FILE [JOB OPTION ...]

  FILE            deployment file, the same content on every machine
  JOB OPTION      --run-folder FOLDER is needed: a new one, the same on every machine, on a disk that all share
  NNODES          machines that take part
  NPROC_PER_NODE  ranks on each machine; NNODES x NPROC_PER_NODE = tp_degree x pp_degree x dp_degree
  RDZV_ENDPOINT   a port on one of the machines, reachable from all; the same on every machine
  NODE_RANK       optional: 0 on the machine that RDZV_ENDPOINT names, 1, 2, ... on the others. Needed only where a
                  machine does not know itself by that name (containers, addresses behind a translation)
  RDZV_ID         optional: names the run, so that two runs may share an endpoint; default hybrid-runtime
  PYTHON          optional: default .venv/bin/python of this repository if it is there, else python3
  GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME  optional: the network interface, where the machines have several

example, on both of two machines with 3 GPUs each:
  NNODES=2 NPROC_PER_NODE=3 RDZV_ENDPOINT=node0:29500 launch/several_machines.sh configs/demo.toml --run-folder runs/first
TEXT
    [ $# -eq 0 ] || echo "launch/several_machines.sh: $*" >&2
    exit 2
}

number() { [[ ${!1:-} =~ ^[1-9][0-9]*$ ]] || usage "$1 must be a positive number, not '${!1:-}'"; }

[ $# -ge 1 ] || usage
file=$1
shift
number NNODES
number NPROC_PER_NODE
[[ ${RDZV_ENDPOINT:-} =~ ^[^[:space:]]+:[0-9]{1,5}$ ]] || usage "RDZV_ENDPOINT must be HOST:PORT, not '${RDZV_ENDPOINT:-}'"
[ -r "$file" ] || usage "'$file' cannot be read; name a deployment file"
place=() # c10d numbers the machines itself and ignores --node-rank; what it takes is who opens the port
if [ -n "${NODE_RANK:-}" ]; then
    [[ $NODE_RANK =~ ^[0-9]+$ && $NODE_RANK -lt $NNODES ]] || usage "NODE_RANK must be 0 to NNODES - 1, not '$NODE_RANK'"
    place=(--rdzv-conf "is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)")
fi

venv="$(dirname -- "${BASH_SOURCE[0]}")/../.venv/bin/python"
python=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || echo python3)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$python" -m torch.distributed.run --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-hybrid-runtime}" ${place[@]+"${place[@]}"} \
    -m hybrid_runtime.job "$file" "$@"
