"""One run on disk: its directory, ledger, manifests, incidents and cost, readable without starting anything."""
