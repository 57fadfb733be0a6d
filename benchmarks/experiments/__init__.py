"""The experiments behind docs/results.md: which algorithm of personalization pays, where, and what it costs."""
