#!/bin/bash
# One array task runs one unit of a study on one GPU; train/study.py --help lists the options.
#     sbatch --array=0-503%64 launch/slurm_study.sh train/studies/locatello.toml studies/locatello
#     python train/study.py --study train/studies/locatello.toml --out studies/locatello    # results
#SBATCH --job-name=adde-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

study=${1:?usage: sbatch --array=0-N launch/slurm_study.sh STUDY OUT}
out=${2:?usage: sbatch --array=0-N launch/slurm_study.sh STUDY OUT}
unit=${SLURM_ARRAY_TASK_ID:?usage: sbatch --array=0-N launch/slurm_study.sh STUDY OUT}

# A requeued task continues from its unit's last checkpoint; a finished unit ends at once.
exec python train/study.py --study "$study" --out "$out" --unit "$unit" --workers 1
