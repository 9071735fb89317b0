"""What every client asks for: the same conversation, tool and shape."""

from __future__ import annotations

from typing import Any

SAY_HI = "Say hi."
CITY: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Get the weather of a city", "parameters": CITY
    },
}  # fmt: skip
ASK_WEATHER = "What is the weather in Paris? Use the tool."
AGE: dict[str, Any] = {
    "type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]
}  # fmt: skip
