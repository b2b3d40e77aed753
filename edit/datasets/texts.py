"""How much a text is like what is written about other things that have the new object (Meng et al. 2022)."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from edit.requests.requests import EditRequest
from locate.errors import FactError


@dataclass(frozen=True, kw_only=True)
class ReferenceTexts:
    """For each fact, texts about things that have its new object; what a model writes is compared with them.

    Words are weighted by TF-IDF over all texts, as published.

    Args:
        texts: by the fact's id.
        corpus: the texts over which words are weighted; by default all that there are.

    Raises:
        FactError: there is no text with a word of two letters or more.

    >>> references = edit.ReferenceTexts(texts={"tower-city": ("The Arno flows in Tuscany, Italy.",)})
    >>> round(references.similarity("The Arno flows in Tuscany.", ["The Arno flows in Tuscany, Italy."]), 2)
    0.91
    """

    texts: Mapping[str, tuple[str, ...]]
    corpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.corpus:
            object.__setattr__(self, "corpus", tuple(dict.fromkeys(chain.from_iterable(self.texts.values()))))
        if not any(re.search(r"\w\w", text) for text in self.corpus):
            raise FactError(f"references: none of {len(self.corpus)} texts has a word to compare.")

    def __repr__(self) -> str:
        return f"ReferenceTexts({len(self.texts)} facts, {len(self.corpus)} texts)"

    def about(self, request: EditRequest) -> tuple[str, ...]:
        """The texts for a request's fact; none where there are none."""
        return self.texts.get(request.fact.id or "", ())

    def similarity(self, text: str, references: Sequence[str]) -> float:
        """The cosine of the angle between a written text and all of the references together: 0 to 1."""
        # As published, accents are taken apart in what a model wrote, and not in the references.
        pair = unicodedata.normalize("NFKD", text), " ".join(references)
        one, other = self._vectorizer.transform(pair)  # of unit length
        return float((one @ other.T).sum())

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds to import, and is seldom needed

        return TfidfVectorizer().fit(self.corpus)
