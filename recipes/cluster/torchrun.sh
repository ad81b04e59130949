#!/bin/sh
# The same run on two hosts with torchrun. On the first host: sh torchrun.sh 0, on the second: sh torchrun.sh 1.
# 用 torchrun 在两台主机上做同一次训练。第一台：sh torchrun.sh 0，第二台：sh torchrun.sh 1。
#
# MASTER_ADDR is the first host, as the second one reaches it; PORT must be open there.
set -eu
NODE=${1:?node number: 0 or 1}
shift
MASTER_ADDR=${MASTER_ADDR:-10.0.0.1}
PORT=${PORT:-29500}
NODES=${NODES:-2}
GPUS=${GPUS:-8}
RUN=${RUN:-recipes/cluster/run.yaml}

exec torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$GPUS" \
  --master-addr "$MASTER_ADDR" --master-port "$PORT" --max-restarts "${RESTARTS:-0}" \
  -m tunewright train "$RUN" "$@"
