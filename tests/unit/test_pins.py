"""What `serve.pin` names."""

from __future__ import annotations

from enginehouse.app_serve import unknown_pins
from enginehouse.core.catalog import Served
from enginehouse.core.settings import Given, resolve
from enginehouse.gateway.router import Offer


def test_pins_that_mean_no_model_are_named() -> None:
    """A pin is a model's name, with or without the default tag; others are unknown."""
    offers = (Offer(Served("a"), ()), Offer(Served("b:1b"), ()))
    for text, unknown in (("", ()), ("a, b:1b", ()), ("a:latest", ()), ("b, c", ("b", "c"))):
        assert unknown_pins(resolve((Given("serve.pin", text, "test"),)), offers) == unknown
