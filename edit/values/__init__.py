"""From requests to the values that make them true: contexts, objective, optimisation."""
