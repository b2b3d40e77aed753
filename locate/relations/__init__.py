"""Relations as affine maps from a subject's state to its object's: fitted, tried, and compared over layers."""
