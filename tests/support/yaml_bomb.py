"""YAML of a few lines whose repeated values expand to billions."""

from __future__ import annotations

YAML_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
