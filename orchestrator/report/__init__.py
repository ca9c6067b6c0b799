"""Report of finished or running runs: one self-contained HTML page, or Markdown."""
