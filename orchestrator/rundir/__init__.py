"""One run on disk: directory, ledger, manifests, incidents and cost. Reading them starts nothing."""
