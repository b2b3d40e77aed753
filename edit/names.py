"""The words that calls and the command line share. Importing them costs nothing."""

# Of a corpus: text that the model writes itself.
SAMPLED = "sampled"
