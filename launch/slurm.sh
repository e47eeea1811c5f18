#!/bin/bash
# One experiment on several machines of a Slurm cluster, which goes on by itself when its time is over:
#
#   sbatch --nodes=4 launch/slurm.sh ota_pruning:paper --workdir=runs/paper
#
# The arguments are those of "fedprune run". Every task is a process with --distributed, and Slurm tells
# them of each other. Two minutes before the end they get SIGTERM, save and exit with 42, whereupon the job
# puts itself into the queue again. Sweeps need no template: fedprune sweep --on=slurm.
#SBATCH --ntasks-per-node=1
#SBATCH --time=60
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=fedprune-%j.log
set -u
PYTHON=${PYTHON:-python}

status=0
srun --kill-on-bad-exit=0 "$PYTHON" -m fedprune run "$@" --distributed || status=$?
[ "$status" != 42 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
