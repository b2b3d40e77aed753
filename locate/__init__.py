"""Find where a language model keeps a fact.

The names are those of the stub beside this file; each is imported when it is first used, so that ``import locate``
costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
