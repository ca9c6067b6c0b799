"""`python -m orchestrator.cli`: the command `rlhf` where its script is not installed."""

import sys

from orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
