"""The process that owns a run: it assembles the gangs, drives the loop, records every step and resumes."""
