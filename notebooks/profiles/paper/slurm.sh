#!/usr/bin/env bash
#SBATCH --gpus=1 --cpus-per-task=12 --mem=48G --time=48:00:00 --signal=B:TERM@300 --requeue
# One experiment on Slurm: `make setup` once, then `sbatch --array=0-7 notebooks/profiles/paper/slurm.sh cifar10-wrn DIR`, from the
# repository. What follows DIR goes to the study, `--per-gpu 4` say. Every job asks for the whole experiment; each run is trained by
# the job that comes first, the others take the next, and a job ends when nothing is left but what others train.
# The repository must lie on a file system that all of them share, and the data and pretrained weights must be there: nodes may
# have no network. A job that runs out of time is told so five minutes before, writes its checkpoints, and is put back.
set -euo pipefail
python="${VENV:-.venv}/bin/python"
"$python" -m saol_lib.training study --profile paper --only "$1" --data "$2" --leave "${@:3}" &
study=$!

told=no
trap 'told=yes; kill -TERM "$study"' TERM
status=0
wait "$study" || status=$?
if [ "$told" = yes ]; then # the first wait ended with the signal, the checkpoints are still to come
    wait "$study" || true
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
