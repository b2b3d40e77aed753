"""What a layer's solve is given, written in one line."""

from edit.methods.rewriting.solves import Problem


def solved(method, keys, residuals, statistics, earlier):
    """A method's factors."""
    return method.solve(Problem(keys=keys, residuals=residuals, statistics=statistics, earlier=earlier))
