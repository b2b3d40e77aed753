"""Circuits: scored edges between components, what of them carries the answer, and how faithfully."""
