"""The words that calls and the command line share. Importing them costs nothing."""

# Of a corpus: text that the model writes itself.
SAMPLED = "sampled"

# Of mediation: what the edited model loses with a base value, and what the base model gains with an edited one.
DIRECTIONS = ("lost", "gained")
# One head's output: at one position, and at all of them at once.
HEAD, HEADS = "attn_head", "heads"
# Of a saved propagation report, the file that says what is in its folder.
CONTENTS = "report.json"
