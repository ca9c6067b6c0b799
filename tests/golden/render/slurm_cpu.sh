#!/bin/bash -l
#SBATCH --job-name=rlhf-base-5e6f7a8b
#SBATCH --comment=rlhf:rlhf-base-5e6f7a8b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=3
#SBATCH --mem=11G
#SBATCH --signal=B:TERM@660
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=NIL
#SBATCH --output=/shared/jobs/rlhf-base-5e6f7a8b/job-%j.log

place=/shared/jobs/rlhf-base-5e6f7a8b
folder="$SLURM_SUBMIT_DIR"
num_gpus=0
grace_s=600
join_s=300
command=(rlhf run /shared/base.yaml)
activate() {
    :
}

