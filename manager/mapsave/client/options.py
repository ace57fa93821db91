"""The options of requests: only what the caller gives, for what is not given is configured.

Names, types and help are those of the requests as the service reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ParamSpec

from mapsave.client import requests

P = ParamSpec("P")
Options = Mapping[str, object]


def _of(request: Callable[P, object]) -> Callable[P, Options]:
    """Return what takes fields of ``request`` by name, and returns those that were given.

    It raises TypeError for a name that is not a field; the service says what is wrong with values.
    """

    @functools.wraps(request, assigned=("__doc__",), updated=())
    def options(*arguments: P.args, **given: P.kwargs) -> Options:
        assert not arguments, "options are given by their names"
        request(*arguments, **given)
        return {name: value for name, value in given.items() if value is not None}

    return options


SaveOptions = _of(requests.SaveOptions)
RestoreOptions = _of(requests.RestoreOptions)
CloneOptions = _of(requests.CloneOptions)
CheckOptions = _of(requests.CheckOptions)
SaveAllOptions = _of(requests.SaveAll)
RestoreAllOptions = _of(requests.RestoreAll)
