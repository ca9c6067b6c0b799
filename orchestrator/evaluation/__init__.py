"""How good the policy is on prompts it never learns from."""
