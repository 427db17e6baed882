"""Health, metrics, tokenization, administration and the web UI."""
