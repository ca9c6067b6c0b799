"""Methods side by side, on one base, one evaluation and one budget."""
