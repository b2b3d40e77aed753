"""Neurons and what they carry: attribution, and where an answer is already said."""
