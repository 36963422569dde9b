"""YAML in which no key occurs twice: the library would keep the last value and lose the others."""

from typing import Any

import yaml
from yaml.composer import Composer


class UniqueKeys(Composer):
    """The base of a loader that refuses mappings with a repeated key."""

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


class SafeLoader(UniqueKeys, yaml.SafeLoader):
    """The library's safe loader with unique keys."""
