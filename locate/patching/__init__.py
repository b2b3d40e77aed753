"""Activation patching, path patching, attention knockout, and estimates of them."""
