#!/bin/bash
# One experiment on all hosts of a Cloud TPU slice that is there, by ssh:
#
#   PROJECT=p ZONE=us-east5-b launch/tpu.sh NAME ota_pruning:paper --workdir=/mnt/runs/paper
#
# NAME is the TPU's, the other arguments are those of "fedprune run". Every host runs a process with
# --distributed, and Cloud TPU tells them of each other. fedprune is installed on all hosts, in the
# interpreter PYTHON, and they see the same --workdir. While the run asks for it (exit status 42), it is
# started again. Sweeps of runs that fit one host need no template: fedprune sweep --on=queued_resources.
set -uo pipefail
: "${PROJECT:?}" "${ZONE:?}"
PYTHON=${PYTHON:-python3}
name=${1:?give the name of the TPU}
shift

for _ in $(seq $((${RESTARTS:-100} + 1))); do
  gcloud compute tpus tpu-vm ssh "$name" --project="$PROJECT" --zone="$ZONE" --worker=all \
    --command="$PYTHON -m fedprune run $(printf '%q ' "$@")--distributed"
  status=$?
  [ "$status" = 42 ] || break
done
exit "$status"
