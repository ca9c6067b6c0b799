"""Data sets of a model's own samples: filters, duplicates, text of evaluations, rows."""
