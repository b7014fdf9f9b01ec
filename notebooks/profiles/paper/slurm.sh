#!/usr/bin/env bash
#SBATCH --gpus=1 --cpus-per-task=12 --mem=48G --time=48:00:00 --signal=TERM@300 --requeue
# One experiment on Slurm: `sbatch --array=0-7 notebooks/profiles/paper/slurm.sh cifar10-wrn DIR`, from the repository.
# Every job asks for the whole experiment; each run is trained by the job that comes first, and the others take the next.
# The repository must lie on a file system that all of them share. A job that ran out of time goes on when it is requeued.
set -euo pipefail
exec make study PROFILE=paper ONLY="$1" DATA="$2" WORKERS=10
