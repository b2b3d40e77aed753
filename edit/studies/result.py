"""The result of a study: what every edit did, and what edits did on average."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from edit.propagation.comparison import PropagationComparison
from locate.errors import SiteError
from locate.sites.site import Site


@dataclass(frozen=True, kw_only=True, eq=False)
class EditStudy(PropagationComparison):
    """Edits of many facts, each by itself, by one or more methods and at one or more choices of the layer.

    Attributes:
        data: ``value`` (dims ``by, fact, measure``): of an edit's evaluation (in percent, as ``Evaluation.summary``
            has them), ``traced: …`` of the fact's trace and ``flow: …`` of its propagation, NaN where there is none;
            ``layer`` (dims ``by, fact``), the last one edited, NaN where there is no edit.
        info: how it was made; ``failed`` has why there is no edit, ``average`` the layer that the averaged trace names.

    >>> studied_edits.methods, studied_edits.data["layer"].dims
    (['traced'], ('by', 'fact'))
    """

    stored_as = "edit_study"
    figures: ClassVar[Mapping[str, str]] = {"plot": "edit.studies.figures:plot_study"}
    about: ClassVar[str] = "what edits do, each by itself"

    @property
    def failed(self) -> pd.DataFrame:
        """The edits that there are not, and why: columns ``by, fact, error``.

        >>> len(studied_edits.failed)
        0
        """
        return pd.DataFrame(self.info["failed"], columns=["by", "fact", "error"])

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each edit: ``by, fact, layer``, every measure, and the ``error`` where it failed.

        >>> studied_edits.to_dataframe().columns[:4].tolist()
        ['by', 'fact', 'layer', 'traced: layer']
        """
        wide = self.data["value"].to_dataset("measure").to_dataframe()[self.measures]
        wide.insert(0, "layer", self.data["layer"].to_series())
        return wide.reset_index().merge(self.failed, on=["by", "fact"], how="left")

    def best(self) -> Site:
        """Where the averaged trace would edit all facts: the largest average effect at the subject's last token.

        Raises:
            SiteError: nothing was traced.

        >>> studied_edits.best().kind
        'mlp'
        """
        if self.info["average"] is None:
            raise SiteError("best: this study traced no fact; ask for layer='traced' or layer='average'.")
        return Site("mlp", layer=int(self.info["average"]))

    def layers(self) -> pd.DataFrame:
        """How many facts were edited at each layer; a column for each method or choice.

        >>> int(studied_edits.layers().to_numpy().sum())
        2
        """
        counts = {}
        for name in self.methods:
            found = self.data["layer"].sel(by=name).values
            counts[name] = pd.Series(found[~np.isnan(found)].astype(int)).value_counts()
        return pd.DataFrame(counts).fillna(0).astype(int).sort_index().rename_axis("layer")


def load_edit_study(path: str | Path) -> EditStudy:
    """Read what was saved.

    Raises:
        DataError: the file is missing or holds something else.

    >>> edit.load_edit_study(studied_edits.save("study.nc")).methods
    ['traced']
    """
    return EditStudy.load(path)
