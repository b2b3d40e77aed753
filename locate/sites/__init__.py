"""Names for places in a model."""
