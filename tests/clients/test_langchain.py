"""LangChain's own standard integration tests, for its Ollama and its OpenAI package.

What fails is marked with why: the demo model has 135 million parameters, and some tests ask for
an answer that only a larger one gives. What the tests check of the endpoint itself all passes.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.clients.conftest import MODEL

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]
TOKENS = 100


class TestChatOllama(ChatModelIntegrationTests):
    """`langchain-ollama`."""

    @pytest.fixture(autouse=True)
    def _endpoint(self, url: str) -> None:
        type(self).url = url

    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """How it is made."""
        return {"model": MODEL, "base_url": self.url, "num_predict": TOKENS, "temperature": 0}

    @property
    def supports_json_mode(self) -> bool:
        """It has `format`."""
        return True

    @property
    def has_tool_choice(self) -> bool:
        """Ollama's API has no way to force a tool."""
        return False


class TestChatOpenAI(ChatModelIntegrationTests):
    """`langchain-openai`."""

    @pytest.fixture(autouse=True)
    def _endpoint(self, url: str) -> None:
        type(self).url = url

    url = ""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """How it is made."""
        return {
            "model": MODEL, "base_url": f"{self.url}/v1", "api_key": "none", "stream_usage": True,
            "max_tokens": TOKENS, "temperature": 0,
        }  # fmt: skip

    @property
    def supports_json_mode(self) -> bool:
        """It has `response_format`."""
        return True
