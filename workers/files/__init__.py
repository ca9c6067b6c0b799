"""Files that workers write into the run directory: durable and checksummed; prompts that crash an engine are listed."""
