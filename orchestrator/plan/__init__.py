"""Estimate memory, step time and cost of a recipe before a GPU is allocated. Pure arithmetic.

    models       shapes of models                     gpus            data sheets of GPUs
    memory       bytes on each GPU of a role          time            seconds of each phase
    work         sequences and tokens of one step     gangs           GPU demands of each role
    step         how the phases overlap               advice          nearest change that fits
    placement    how to split n GPUs over the roles   plan            everything for one recipe
    calibrate    constants fitted to a finished run   measured_steps  timings of that run
    checkpoints  disk space                           refuse          errors for what cannot fit
    show         output for people                    as_json         output for programs

Nothing here has been measured on a cluster by this project; docs/evidence/back_test.md compares it with published runs.
"""
