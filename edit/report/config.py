"""The settings of a demo, as a file gives them."""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from edit.names import SAMPLED
from locate.errors import DataError
from locate.facts.facts import Fact
from locate.names import DEFAULT_MODEL


class DemoConfig(BaseModel):
    """What a file may set; options on the command line win over it.

    >>> DemoConfig(layer=4).samples
    10
    """

    model_config = ConfigDict(extra="forbid")

    fact: dict[str, Any] | None = None
    model: str = DEFAULT_MODEL
    target_new: str | None = None
    layer: int | None = None
    out: Path | None = None
    samples: int = 10
    noise: float = 3.0
    window: int | None = None
    seed: int = 1
    corpus: str = SAMPLED

    def given(self, fact: Fact, **settings: Any) -> "DemoConfig":
        """The same with this fact, and with those of the settings that are not None.

        >>> DemoConfig().given(fact, layer=4, out=None).fact["target"]
        'Paris'
        """
        plain = TypeAdapter(Fact).dump_python(fact, mode="json", exclude_defaults=True)
        return self.model_copy(update={"fact": plain, **{k: v for k, v in settings.items() if v is not None}})

    def plain(self) -> dict[str, Any]:
        """What a file must hold to give the same settings."""
        return self.model_dump(mode="json", exclude_none=True)


def read_config(path: Path | None) -> DemoConfig:
    """The settings in a TOML or JSON file; the usual ones without a file.

    Raises:
        DataError: there is no such file, it is not readable, or it sets something that there is not.

    >>> read_config(None).noise
    3.0
    """
    if path is None:
        return DemoConfig()
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return DemoConfig.model_validate(data)
    except FileNotFoundError as error:
        raise DataError(f"There is no config file {str(path)!r}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}. Known: {', '.join(DemoConfig.model_fields)}.") from error
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
