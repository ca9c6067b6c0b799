"""Gangs of workers on a Ray cluster. No other package imports Ray."""
