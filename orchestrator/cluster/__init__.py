"""Where gangs of workers live. Ray is imported here and nowhere else."""
