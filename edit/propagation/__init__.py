"""How an edit travels from the changed weights to the answer."""
