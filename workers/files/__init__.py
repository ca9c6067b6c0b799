"""Files that workers write into the run directory: durable, checksummed, and quarantined where a row is at fault."""
