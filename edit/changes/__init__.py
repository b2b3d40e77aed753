"""What an edit leaves behind: a change of weights, applied, reverted, saved and exported."""
