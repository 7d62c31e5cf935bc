"""What a process has set for itself neither reaches our networks nor is changed by them: devices, forks, random numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from slimcodec.errors import SlimError

P = ParamSpec("P")
R = TypeVar("R")
#: methods of tensors, and functions of torch.nn.init, that fill a tensor with random numbers
DRAWS = ("uniform_", "normal_", "bernoulli_", "exponential_", "orthogonal_", "sparse_")
#: the process in which networks ran first
_first_process: int | None = None


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` without gradients, whatever default device and autocast the caller has set.

    Its tensors may take part in the caller's training: they are no inference tensors. Raises ``SlimError`` in a forked process
    whose torch would wait for threads for ever.
    """

    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        _check_fork()
        with torch.no_grad(), on_processor(), ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*arguments, **named)

    return run


def on_processor() -> Any:
    """Context in which tensors without a device of their own are made on the processor; free where they are anyway."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def building() -> Iterator[None]:
    """Context for networks whose weights are loaded next: none are drawn, and gradients may flow through them.

    The random numbers belong to the whole process: drawing would change them, and resetting them would repeat other threads'.
    """
    with torch.inference_mode(False), on_processor(), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are, or zero, where they would be filled with numbers of the process's generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if kwargs.get("generator") is None:
            if name.endswith(DRAWS):
                return args[0] if args else kwargs["tensor"]
            if name in ("rand", "randn"):
                func = torch.zeros
        return func(*args, **kwargs)


def _check_fork() -> None:
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise SlimError(
            "this process was forked from one that had run a codec, and torch's threads did not come along: start processes "
            "with multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) in this one first"
        )
