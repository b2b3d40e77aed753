"""The model itself: loading, its weights, how it is made, what it computes in."""
