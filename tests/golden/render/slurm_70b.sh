#!/bin/bash -l
#SBATCH --job-name=rlhf-grpo-70b-1a2b3c4d
#SBATCH --comment=rlhf:rlhf-grpo-70b-1a2b3c4d
#SBATCH --partition=h100
#SBATCH --account=alignment
#SBATCH --qos=normal
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:8
#SBATCH --time=2-00:00:00
#SBATCH --nice=5
#SBATCH --signal=B:TERM@1320
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --export=NIL
#SBATCH --output=/shared/jobs/rlhf-grpo-70b-1a2b3c4d/job-%j.log
#SBATCH --constraint=nvlink
#SBATCH --exclude=node[7-8]

place=/shared/jobs/rlhf-grpo-70b-1a2b3c4d
folder=/shared/jobs/rlhf-grpo-70b-1a2b3c4d/package
num_gpus=8
grace_s=1260
join_s=300
command=(rlhf entry secrets WANDB_API_KEY=/secrets/wandb -- rlhf run configs/70b/grpo.yaml output_dir=/shared/runs)
activate() {
    source /shared/rlhf/.venv/bin/activate
}

