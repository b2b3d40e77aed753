"""Fixtures of the tests of commands: a model to load and facts to ask it."""

import json
import random

import pytest

from tests import tiny

# Two facts each with prompts of 8 and of 9 tokens.
FACTS = [
    {"id": "louvre", "relation": "city", "prompt": "{} is located in the city of", "subject": "The Louvre",
     "target": "Paris", "target_new": "Rome"},
    {"id": "big-ben", "relation": "city", "prompt": "{} is located in the city of", "subject": "Big Ben",
     "target": "London", "target_new": "Rome"},
    {"id": "colosseum", "relation": "city", "prompt": "{} is located in the city of", "subject": "The Colosseum",
     "target": "Rome", "target_new": "London"},
    {"relation": "city", "prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target": "Paris",
     "target_new": "Rome"},
]  # fmt: skip
# No subject is as long as this, so that none can take its place.
UNMATCHED = {"id": "unmatched", "prompt": "{} is located in the city of", "subject": "xqz" * 40, "target": "Paris"}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A small model with random weights, as a folder."""
    path = tmp_path_factory.mktemp("model")
    tiny.hf_model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def facts_file(tmp_path):
    """Writes facts to a file: by default four, of two lengths."""

    def write(facts=FACTS, name="cities.json"):
        path = tmp_path / name
        path.write_text(json.dumps(facts))
        return str(path)

    return write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text file of made-up words, long enough for key statistics of a small model."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(" ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(1600)))
    return str(path)
