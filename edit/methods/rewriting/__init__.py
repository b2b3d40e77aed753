"""Methods that locate a fact's place in the weights and rewrite it there."""
