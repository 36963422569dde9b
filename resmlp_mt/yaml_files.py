"""Readers of YAML in which no key occurs twice, and a corpus file, where every value is text."""

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from resmlp_mt.errors import UserError

MAX_BYTES = 100_000
"""Largest size of a corpus file, because YAML is slow to read."""


class _UniqueKeys(Composer):
    """Refuses mappings with a repeated key, of which the library would keep the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As the library does it.

        Raises:
            yaml.YAMLError: naming the key and its line.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: {key.value} occurs more than once")
                seen.add(key.value)
        return node


class SafeLoader(_UniqueKeys, yaml.SafeLoader):
    """The library's safe loader with unique keys."""


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    """Reads every value as text (so `no` is Norwegian), and refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            # Ten lines of aliases can become gigabytes.
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: an alias (*)")
        return super().compose_node(parent, index)


def read_corpus(path: Path) -> Any:
    """The content of a corpus file, as texts, lists and dictionaries.

    Raises:
        UserError: it is too large, not UTF-8 or invalid, or has aliases or repeated keys.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has over {MAX_BYTES} bytes: it is not a corpus file")
    try:
        # this loader makes texts, lists and dictionaries only
        return yaml.load(path.read_text(encoding="utf-8"), _TextLoader)  # nosec B506
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is not valid YAML: {' '.join(reason.split())}") from error
