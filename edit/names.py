"""The words that calls and the command line share. Importing them costs nothing."""

from typing import Literal, get_args

# Of a corpus: text that the model writes itself.
SAMPLED = "sampled"
# Of key statistics that a method collects: how many keys. Quick ones are so many for each of a key's dimensions.
Amount = Literal["quick", "full"]
AMOUNTS: tuple[Amount, ...] = get_args(Amount)
QUICK_KEYS = 4

# Of mediation: what the edited model loses with a base value, and what the base model gains with an edited one.
DIRECTIONS = ("lost", "gained")
# One head's output: at one position, and at all of them at once.
HEAD, HEADS = "attn_head", "heads"
# Of a saved propagation report, the file that says what is in its folder.
CONTENTS = "report.json"
