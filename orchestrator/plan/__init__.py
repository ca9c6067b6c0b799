"""Estimate memory, step time and cost of a recipe before a GPU is allocated. Pure arithmetic.

    models       shapes of models                     gpus            data sheets of GPUs
    memory       bytes on each GPU of a role          time            seconds of each phase
    work         sequences and tokens of one step     gangs           GPU demands of each role
    step         how the phases overlap               advice          nearest change that fits
    placement    how to split n GPUs over the roles   plan            everything for one recipe
    calibrate    constants fitted to a finished run   measured_steps  timings of that run
    chunks       parts of a step that overlap         scorers         seconds of rewards on processors
    evaluation   seconds of an evaluation             loading         seconds to start each role
    calls        remote calls and their time limits   price           a whole run, measuring apart
    checkpoints  disk space                           refuse          errors for what cannot run
    roles        tables with every role               format          text for figures
    show         output for people                    as_json         output for programs

Nothing here has been measured on a cluster by this project; docs/evidence/back_test.md compares it with published runs.
"""
