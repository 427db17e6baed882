"""Measuring: workloads of fixed lengths, what a client sees of them, and the machine's own limit beside that."""
