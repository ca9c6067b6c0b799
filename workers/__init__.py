"""What runs inside an actor. Never imports `orchestrator`, never imports `ray`."""
