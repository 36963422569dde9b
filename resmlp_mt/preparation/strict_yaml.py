"""Reads the YAML of corpus files: every value is text, and nothing makes it large."""

from pathlib import Path
from typing import Any

import yaml

from resmlp_mt.errors import UserError
from resmlp_mt.yaml_keys import UniqueKeys

MAX_BYTES = 100_000
"""Largest size of a corpus file, because YAML is slow to read."""


class _Loader(UniqueKeys, yaml.BaseLoader):
    """Reads every value as text (so `no` is Norwegian), and refuses aliases and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Ten lines of aliases can become gigabytes.
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias (*)")
        return super().compose_node(parent, index)


def read(path: Path) -> Any:
    """The content of `path`, as texts, lists and dictionaries.

    Raises:
        UserError: it is too large, not UTF-8 or invalid, or has aliases or repeated keys.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has over {MAX_BYTES} bytes: it is not a corpus file")
    try:
        # this loader makes texts, lists and dictionaries only
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # nosec B506
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is not valid YAML: {' '.join(reason.split())}") from error
