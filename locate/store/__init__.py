"""Results on disk: whole files, labelled arrays, tensors, hashes, run folders."""
