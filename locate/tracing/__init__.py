"""Causal tracing, and its averages over facts."""
