"""One run on disk: its directory, its ledger, its checkpoints, and the driver that owns them."""
