"""Will it fit, how long, what does it cost? Pure arithmetic on a recipe, before a GPU is taken.

    models   what a model is made of          gpus     what a GPU has
    memory   bytes of each role               time     seconds of each phase
    work     what one step has to do          gangs    which roles a recipe asks for, and what they hold
    step     how the phases overlap           advice   the nearest change that fits
    placement  which shares of n GPUs fit, and the best   plan   all of it for one recipe
    calibrate  the constants of a finished run            show   for people to read

Nothing here has been measured on a cluster by this project; docs/plan.md compares it with published runs.
"""
