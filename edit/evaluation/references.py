"""How much a text is like what is written about other things that have the new object (Meng et al. 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from edit.requests import EditRequest


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceTexts:
    """Texts about things that have a certain object in a relation; a written text is compared with them.

    Words are weighted by TF-IDF over all of the texts, as published.

    Attributes:
        texts: by relation and the object's id.

    >>> references = edit.ReferenceTexts(texts={("P17", "Q38"): ("The Arno flows in Tuscany, Italy.",)})
    >>> round(references.similarity("The Arno flows in Tuscany.", ("The Arno flows in Tuscany, Italy.",)), 2)
    0.91
    """

    texts: Mapping[tuple[str, str], tuple[str, ...]] = field(repr=False)

    def about(self, request: EditRequest) -> tuple[str, ...]:
        """The texts about things that have the request's new object; none where the request or the file has none."""
        relation, wanted = request.fact.relation, request.target_new_id
        return () if relation is None or wanted is None else self.texts.get((relation, wanted), ())

    def similarity(self, text: str, references: tuple[str, ...]) -> float:
        """The cosine of the angle between a text and all of the references together: 0 to 1."""
        one, other = self._vectorizer.transform([text, " ".join(references)])  # of unit length
        return float((one @ other.T).sum())

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds to import, and is seldom needed

        return TfidfVectorizer().fit(chain.from_iterable(self.texts.values()))
