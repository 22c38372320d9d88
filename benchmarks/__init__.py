"""One module per question, one command for all (``python -m benchmarks``): tables, and JSON with versions."""
