"""LangChain's own standard integration tests, for its Ollama and its OpenAI package.

The demo model has 135 million parameters, and some tests ask for an answer that only a larger one
gives for certain: `TOO_HARD` names them with the reason, and they may fail.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.clients.conftest import MODEL

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # unclosed
    pytest.mark.filterwarnings("ignore::UserWarning"),  # LangChain's own, of its serializers
]
TOKENS = 250
TOO_HARD = {
    "test_json_mode": "the shape is told in words only, which the model does not follow",
    "test_agent_loop": "the model has to choose a tool by itself, and to use what it answered",
    "test_structured_output_optional_param": "the model fills what is optional until the end",
    "test_unicode_tool_call_integration": "the model has to choose a tool by itself",
    "test_structured_output_pydantic_2_v1": "LangChain takes a tool that the model must choose",
}


class AtEndpoint:
    """What both have in common: the endpoint, and a way to ask for JSON."""

    url = ""

    @pytest.fixture(autouse=True)
    def _endpoint(self, url: str) -> None:
        type(self).url = url

    @property
    def supports_json_mode(self) -> bool:
        """It has `format` here and `response_format` there."""
        return True


class TestChatOllama(AtEndpoint, ChatModelIntegrationTests):
    """`langchain-ollama`."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """How it is made."""
        return {"model": MODEL, "base_url": self.url, "num_predict": TOKENS, "temperature": 0}

    @property
    def has_tool_choice(self) -> bool:
        """Ollama's API has no way to force a tool."""
        return False


class TestChatOpenAI(AtEndpoint, ChatModelIntegrationTests):
    """`langchain-openai`."""

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
