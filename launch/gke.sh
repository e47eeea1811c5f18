#!/bin/bash
# One experiment on a TPU slice of several hosts in a GKE cluster, by xpk:
#
#   PROJECT=p ZONE=us-east5-b CLUSTER=c TPU_TYPE=v5litepod-16 IMAGE=image:1 \
#     launch/gke.sh NAME ota_pruning:paper --workdir=/mnt/runs/paper
#
# NAME is the workload's, the other arguments are those of "fedprune run". Every host runs a process with
# --distributed, and Cloud TPU tells them of each other. The image has fedprune, and all hosts see --workdir.
# A run that is asked to stop exits with 42, which starts the workload again. Sweeps of runs that fit one
# host need no template: fedprune sweep --on=gke.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${TPU_TYPE:?}" "${IMAGE:?}"
PYTHON=${PYTHON:-python}
name=${1:?give the name of the workload}
shift

exec xpk workload create --workload="$name" --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --tpu-type="$TPU_TYPE" --num-slices=1 --docker-image="$IMAGE" \
  --restart-on-exit-codes=42 --max-restarts="${RESTARTS:-100}" \
  --command="exec $PYTHON -m fedprune run $(printf '%q ' "$@")--distributed"
