"""Checks of the files that a recipe names, before any process is started: models, data, rewards, directories."""
