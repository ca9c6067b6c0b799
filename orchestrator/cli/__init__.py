"""The command `rlhf`: one module per group of subcommands."""
