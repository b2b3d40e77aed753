"""The bar of values that are being found: it moves with every step, and forgets those that are not needed."""

from types import TracebackType

from tqdm.auto import tqdm


class StepBar:
    """Counts optimisation steps over requests; a request that stops early takes its other steps off the total.

    What is left is therefore the most that is left.

    Args:
        requests: how many values are found.
        steps: the most that each of them takes.
        shown: whether there is a bar.

    >>> with StepBar(requests=2, steps=40) as bar:
    ...     bar.step(2)
    ...     bar.spare(39)
    ...     bar.left
    39
    """

    def __init__(self, *, requests: int, steps: int, shown: bool = False) -> None:
        self.left = requests * steps
        name = f"values of {requests} requests" if requests > 1 else "value"
        self._bar = tqdm(total=self.left, desc=name, unit="step", disable=not shown, delay=1)

    def step(self, requests: int) -> None:
        """One step of so many requests was taken."""
        self.left -= requests
        self._bar.update(requests)

    def spare(self, steps: int) -> None:
        """So many steps are not needed."""
        self.left -= steps
        if self._bar.total is not None:
            self._bar.total -= steps

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
