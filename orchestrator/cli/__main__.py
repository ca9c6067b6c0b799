"""Command `rlhf` as `python -m orchestrator.cli`, for environments without the installed script."""

import sys

from orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
