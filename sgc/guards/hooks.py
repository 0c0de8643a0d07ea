"""Where torch keeps the hooks that act when modules run."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""The attributes of a module that hold its own, private to torch, which has no public call for them."""

GLOBAL_HOOKS: dict[str, dict[int, Any]] = {f"_global{name}": getattr(module, f"_global{name}") for name in HOOKS}
"""Those that act when any module runs."""
