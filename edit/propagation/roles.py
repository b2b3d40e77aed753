"""How figures draw the roles of probes, and what pages say of them."""

# Okabe and Ito's colours, told apart by readers with any colour vision and, with the markers, in print. Consequences
# of an unknown number of hops share the first one's colour; unrelated prompts stand back.
ROLE_STYLES: dict[str, tuple[str, str]] = {
    "edit": ("#000000", "o"), "paraphrase": ("#0072B2", "s"), "alias": ("#56B4E9", "p"),
    "one-hop": ("#009E73", "d"), "two-hop": ("#CC79A7", "P"), "consequence": ("#009E73", "D"),
    "same subject": ("#E69F00", "^"), "neighbour": ("#D55E00", "v"), "unrelated": ("#7F7F7F", "X"),
}  # fmt: skip

ROLE_MEANINGS: dict[str, str] = {
    "edit": "the prompt that was edited", "paraphrase": "the same question in other words",
    "alias": "the same question about the subject by another name",
    "one-hop": "what follows in one step of reasoning", "two-hop": "what follows in two steps",
    "consequence": "what follows from the edit",
    "same subject": "another relation of the subject, which should stay",
    "neighbour": "the same question about another subject, whose answer should stay",
    "unrelated": "has nothing to do with the edit, and should stay",
}  # fmt: skip
