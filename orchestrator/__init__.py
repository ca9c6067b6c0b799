"""Decides what happens next and owns all state; computes nothing on tokens."""
