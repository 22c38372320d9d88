"""One script per question; each prints a table and writes JSON with device, versions and commit."""
