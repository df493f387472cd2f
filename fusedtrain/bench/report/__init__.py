"""One page about a run: self-contained HTML with plots, or Markdown."""
