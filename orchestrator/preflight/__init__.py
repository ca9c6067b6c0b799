"""Checks of the models, data, rewards and directories that a recipe names, before any process is started."""
