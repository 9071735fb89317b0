"""JSON schemas of the bodies that go in and come out, by operation, for the API description."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

ANY: Schema = {}
TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
TEXTS: Schema = {"type": "array", "items": TEXT}


def obj(required: str = "", /, **properties: Schema) -> Schema:
    """Return the schema of an object; more fields than these may be there."""
    names = required.split()
    return {"type": "object", "properties": properties, **({"required": names} if names else {})}


def many(item: Schema, least: int = 0) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": item, **({"minItems": least} if least else {})}


def ref(name: str) -> Schema:
    """Point to a schema of `COMPONENTS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Schema) -> Schema:
    """Return a schema that null fits too."""
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*words: str) -> Schema:
    """Return the schema of one of these words."""
    return {"type": "string", "enum": list(words)}


TURN = one_of("user", "engine", "machine", "us")
SAMPLING: dict[str, Schema] = {
    "temperature": maybe({"type": "number", "minimum": 0, "maximum": 2}),
    "top_p": maybe({"type": "number", "minimum": 0, "maximum": 1}),
    "top_k": maybe({"type": "integer", "minimum": 0, "maximum": 100000}),
}
MORE_SAMPLING: dict[str, Schema] = {
    **SAMPLING,
    "seed": maybe({"type": "integer", "minimum": -1, "maximum": 4294967295}),
    "presence_penalty": maybe({"type": "number", "minimum": -2, "maximum": 2}),
    "frequency_penalty": maybe({"type": "number", "minimum": -2, "maximum": 2}),
}
MOST = maybe({"type": "integer", "minimum": 1, "maximum": 2147483647})
STOP = maybe({"anyOf": [TEXT, TEXTS]})
FUNCTION = obj("name", name=NAME, description=TEXT, parameters=OBJECT)
TOOL = obj("type function", type=one_of("function"), function=FUNCTION)
CHAT_MESSAGE = obj(
    "role content",
    role=one_of("system", "user", "assistant"),
    content={"anyOf": [TEXT, many(obj("type text", type=one_of("text"), text=TEXT), 1)]},
)
MESSAGES = many(CHAT_MESSAGE, 1)
INPUT = {"anyOf": [TEXT, many(TEXT, 1)]}
KEEP_ALIVE = {
    "anyOf": [NUMBER, {"type": "string", "pattern": r"^-?[0-9]+(ns|us|ms|s|m|h)?$"}],
    "description": "seconds, or a duration such as 5m; negative: for ever; 0 unloads",
}
SHAPE = {"anyOf": [one_of("json", ""), OBJECT]}
OPTIONS = obj(
    "",
    num_ctx=COUNT, num_predict=WHOLE, seed=COUNT, temperature=SAMPLING["temperature"],
    top_k=SAMPLING["top_k"], top_p=SAMPLING["top_p"], stop=TEXTS,
)  # fmt: skip
OLLAMA_MESSAGE = obj(
    "role", role=one_of("system", "user", "assistant", "tool"), content=TEXT, thinking=TEXT
)
CLAUDE_MESSAGE = obj(
    "role content",
    role=one_of("user", "assistant"),
    content={"anyOf": [TEXT, many(obj("type text", type=one_of("text"), text=TEXT), 1)]},
)
CLAUDE_TOOL = obj("name input_schema", name=NAME, description=TEXT, input_schema=OBJECT)
CLAUDE: dict[str, Schema] = {
    "model": NAME, "messages": many(CLAUDE_MESSAGE, 1), "system": TEXT,
    "tools": many(CLAUDE_TOOL),
}  # fmt: skip
CHAT = obj(
    "messages",
    model=maybe(TEXT), messages=MESSAGES, stream=maybe(FLAG), max_tokens=MOST,
    max_completion_tokens=MOST, n={"type": "integer", "minimum": 1, "maximum": 128}, stop=STOP,
    tools=many(TOOL), num_ctx=maybe(COUNT), **MORE_SAMPLING,
)  # fmt: skip
PREDICT = obj(
    "prompt",
    prompt=TEXT,
    stream=FLAG,
    n_predict={"type": "integer", "minimum": -1},
    **{name: kind["anyOf"][0] for name, kind in MORE_SAMPLING.items()},
)

BODIES: dict[tuple[str, str], Schema] = {
    ("openai", "chat"): CHAT,
    ("openai", "completions"): obj(
        "prompt",
        model=maybe(TEXT), prompt=TEXT, stream=maybe(FLAG), max_tokens=MOST, stop=STOP,
        n={"type": "integer", "minimum": 1, "maximum": 128}, **MORE_SAMPLING,
    ),
    ("openai", "completion"): PREDICT,
    ("openai", "embeddings"): obj(
        "", model=maybe(TEXT), input=INPUT, content=INPUT, encoding_format=one_of("float", "base64")
    ),
    ("openai", "rerank"): obj(
        "query documents", model=maybe(TEXT), query=TEXT, documents=many(TEXT, 1), top_n=COUNT
    ),
    ("openai", "infill"): obj("input_prefix input_suffix", input_prefix=TEXT, input_suffix=TEXT,
                              n_predict={"type": "integer", "minimum": -1}),
    ("openai", "apply_template"): obj("messages", messages=MESSAGES),
    ("openai", "responses"): obj(
        "input",
        model=TEXT, instructions=TEXT, stream=FLAG, store=maybe(FLAG), max_output_tokens=MOST,
        previous_response_id=maybe(TEXT), tools=many(
            obj("type name", type=one_of("function"), name=NAME, parameters=OBJECT)),
        input={"anyOf": [TEXT, many(obj("role content", role=one_of("user", "assistant", "system"),
                                        content=TEXT), 1)]},
        **SAMPLING,
    ),
    ("openai", "count"): {
        "anyOf": [obj("messages", model=TEXT, messages=MESSAGES),
                  obj("input", model=TEXT, input=NAME, instructions=TEXT)]
    },
    ("openai", "tokenize"): {
        "anyOf": [obj("content", model=TEXT, content=TEXT, add_special=FLAG, with_pieces=FLAG),
                  obj("prompt", model=TEXT, prompt=TEXT, add_special_tokens=FLAG),
                  obj("messages", model=TEXT, messages=MESSAGES)]
    },
    ("openai", "detokenize"): obj("tokens", model=TEXT, tokens=many(COUNT)),
    ("ollama", "show"): obj("model", model=NAME, verbose=FLAG),
    ("ollama", "chat"): obj(
        "model",
        model=NAME, messages=many(OLLAMA_MESSAGE), stream=FLAG, options=OPTIONS, format=SHAPE,
        keep_alive=KEEP_ALIVE, tools=many(TOOL),
        think={"anyOf": [FLAG, one_of("low", "medium", "high")]},
    ),
    ("ollama", "generate"): obj(
        "model",
        model=NAME, prompt=TEXT, system=TEXT, stream=FLAG, raw=FLAG, options=OPTIONS, format=SHAPE,
        template=TEXT, images=TEXTS, keep_alive=KEEP_ALIVE,
        think={"anyOf": [FLAG, one_of("low", "medium", "high")]},
    ),
    ("ollama", "embed"): obj(
        "model input", model=NAME, input=INPUT, dimensions=COUNT, options=OPTIONS,
        keep_alive=KEEP_ALIVE,
    ),
    ("ollama", "embeddings"): obj(
        "model prompt", model=NAME, prompt=TEXT, options=OPTIONS, keep_alive=KEEP_ALIVE
    ),
    ("ollama", "pull"): obj("model", model=NAME, stream=FLAG),
    ("ollama", "create"): obj("model from", model=NAME, **{"from": NAME}, stream=FLAG),
    ("ollama", "copy"): obj("source destination", source=NAME, destination=NAME),
    ("ollama", "delete"): obj("model", model=NAME),
    ("anthropic", "messages"): obj(
        "model max_tokens messages",
        max_tokens={"type": "integer", "minimum": 1}, stream=FLAG, stop_sequences=TEXTS,
        **CLAUDE, **SAMPLING,
    ),
    ("anthropic", "count_tokens"): obj("model messages", **CLAUDE),
}  # fmt: skip
"""What the readers of the dialects take; what is forwarded may have the engine's further fields."""

QUERIES: dict[tuple[str, str], dict[str, Schema]] = {
    ("openai", "input_items"): {
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
        "order": one_of("asc", "desc"), "after": TEXT,
    },
}  # fmt: skip
"""What may stand behind the question mark."""

DETAILS = obj(
    "format family families parameter_size quantization_level",
    format=TEXT, family=TEXT, families=TEXTS, parameter_size=TEXT, quantization_level=TEXT,
)  # fmt: skip
TIMES: dict[str, Schema] = dict.fromkeys(
    ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
     "eval_count", "eval_duration"),
    COUNT,
)  # fmt: skip
TOLD: dict[str, Schema] = {"code": TEXT, "from": TURN, "remedies": TEXTS}
USAGE = obj(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT,
)  # fmt: skip
CHOICE = obj("index finish_reason", index=COUNT, finish_reason=maybe(TEXT))
SAID = obj("role", role=one_of("assistant"), content=maybe(TEXT), tool_calls=many(OBJECT))
HEAD = {"id": TEXT, "created": COUNT, "model": TEXT}
MODEL = obj(
    "id object created owned_by",
    id=NAME, object=one_of("model"), created=COUNT, owned_by=TEXT, aliases=TEXTS,
    max_model_len=COUNT, meta=OBJECT, type=one_of("model"), display_name=TEXT, created_at=TEXT,
)  # fmt: skip
CLAUDE_USAGE = obj("input_tokens output_tokens", input_tokens=COUNT, output_tokens=COUNT)


def _with(schema: Schema, required: str, **more: Schema) -> Schema:
    """Return an object's schema with more fields."""
    names = [*schema.get("required", ()), *required.split()]
    return {**schema, "properties": {**schema["properties"], **more}, "required": names}


COMPONENTS: dict[str, Schema] = {
    "OpenAIError": obj("error", error={
        "type": "object", "required": ["message", "type", "code"],
        "properties": {"message": TEXT, "type": TEXT, "param": maybe(TEXT), **TOLD},
    }),
    "OllamaError": {
        "type": "object", "required": ["error", "code", "from"],
        "properties": {"error": TEXT, **TOLD},
    },
    "AnthropicError": obj("type error", type=one_of("error"), error={
        "type": "object", "required": ["type", "message", "code", "from"],
        "properties": {"type": TEXT, "message": TEXT, **TOLD},
    }),
    "ChatCompletion": obj(
        "id object created model choices usage",
        **HEAD, object=one_of("chat.completion"), usage=USAGE,
        choices=many(_with(CHOICE, "message", message=SAID), 1),
    ),
    "ChatCompletionChunk": obj(
        "id object created model choices",
        **HEAD, object=one_of("chat.completion.chunk"),
        choices=many(_with(CHOICE, "delta", delta=OBJECT)), usage=maybe(USAGE),
    ),
    "TextCompletion": obj(
        "id object created model choices",
        **HEAD, object=one_of("text_completion"), choices=many(_with(CHOICE, "text", text=TEXT)),
        usage=maybe(USAGE),
    ),
    "LlamaCompletion": obj("content stop", content=TEXT, stop=FLAG, tokens_predicted=COUNT),
    "EmbeddingList": obj("object data", object=one_of("list"), usage=OBJECT, data=many(
        obj("object index embedding", object=one_of("embedding"), index=COUNT,
            embedding={"anyOf": [many(NUMBER), TEXT]}))),
    "Embedding": {"anyOf": [ref("EmbeddingList"),
                            many(obj("index embedding", index=COUNT, embedding=many(ANY)))]},
    "Ranking": obj("results", results=many(
        obj("index relevance_score", index=COUNT, relevance_score=NUMBER))),
    "Response": obj(
        "id object status output model usage",
        id=TEXT, object=one_of("response"), created_at=COUNT, model=TEXT, output=many(OBJECT),
        status=one_of("completed", "incomplete", "failed"), usage=maybe(CLAUDE_USAGE),
    ),
    "ForgottenResponse": obj(
        "id object deleted", id=TEXT, object=one_of("response"), deleted=FLAG
    ),
    "ItemList": obj(
        "object data first_id last_id has_more",
        object=one_of("list"), data=many(obj("type id", type=TEXT, id=TEXT)),
        first_id=maybe(TEXT), last_id=maybe(TEXT), has_more=FLAG,
    ),
    "ResponseEvent": obj("type sequence_number", type=TEXT, sequence_number=COUNT),
    "InputTokens": obj("input_tokens", input_tokens=COUNT),
    "Tokens": obj("tokens count max_model_len", tokens=many({"anyOf": [COUNT, OBJECT]}),
                  count=COUNT, max_model_len=COUNT),
    "Text": obj("content prompt", content=TEXT, prompt=TEXT),
    "Model": MODEL,
    "ModelList": obj("object data has_more", object=one_of("list"), data=many(ref("Model")),
                     has_more=FLAG, first_id=maybe(TEXT), last_id=maybe(TEXT)),
    "Prompt": obj("prompt", prompt=TEXT),
    "OllamaVersion": obj("version", version=TEXT),
    "OllamaTags": obj("models", models=many(
        obj("name model modified_at size digest details", name=NAME, model=NAME, modified_at=TEXT,
            size=COUNT, digest=TEXT, details=DETAILS, capabilities=TEXTS))),
    "OllamaRunning": obj("models", models=many(
        obj("name model size digest details expires_at size_vram", name=NAME, model=NAME,
            size=COUNT, digest=TEXT, details=DETAILS, expires_at=TEXT, size_vram=COUNT,
            context_length=COUNT))),
    "OllamaModel": obj(
        "modelfile parameters template details model_info capabilities modified_at",
        modelfile=TEXT, parameters=TEXT, template=TEXT, details=DETAILS, model_info=OBJECT,
        capabilities=TEXTS, modified_at=TEXT, license=TEXT,
    ),
    "OllamaChat": obj(
        "model created_at message done",
        model=NAME, created_at=TEXT, done=FLAG, done_reason=TEXT, **TIMES,
        message=obj("role content", role=one_of("assistant"), content=TEXT, thinking=TEXT,
                    tool_calls=many(OBJECT)),
    ),
    "OllamaGenerate": obj(
        "model created_at response done",
        model=NAME, created_at=TEXT, response=TEXT, thinking=TEXT, done=FLAG, done_reason=TEXT,
        **TIMES,
    ),
    "OllamaEmbed": obj("model embeddings", model=NAME, embeddings=many(many(NUMBER)),
                       total_duration=COUNT, load_duration=COUNT, prompt_eval_count=COUNT),
    "OllamaEmbedding": obj("embedding", embedding=many(NUMBER)),
    "OllamaProgress": obj("", status=TEXT, digest=TEXT, total=COUNT, completed=COUNT, error=TEXT),
    "AnthropicMessage": obj(
        "id type role model content stop_reason usage",
        id=TEXT, type=one_of("message"), role=one_of("assistant"), model=NAME,
        content=many(obj("type", type=one_of("text", "thinking", "tool_use")), 1),
        stop_reason=maybe(TEXT), stop_sequence=maybe(TEXT), usage=CLAUDE_USAGE,
    ),
    "AnthropicEvent": obj("type", type=TEXT),
    "Health": obj(
        "status model models in_flight",
        status=TEXT, model=maybe(TEXT), in_flight=COUNT, reason=TEXT, restarts=COUNT,
        seconds_since_proof=NUMBER,
        models={"type": "object", "additionalProperties": obj("status in_flight", status=TEXT,
                                                              in_flight=COUNT)},
    ),
    "Description": obj("openapi info paths", openapi=TEXT, info=OBJECT, paths=OBJECT),
    "Object": OBJECT,
    "Objects": many(OBJECT),
}  # fmt: skip
"""Answers and errors."""

ANSWERS: dict[tuple[str, str], tuple[str, str]] = {
    ("openai", "chat"): ("ChatCompletion", "ChatCompletionChunk"),
    ("openai", "completions"): ("TextCompletion", "TextCompletion"),
    ("openai", "completion"): ("LlamaCompletion", "LlamaCompletion"),
    ("openai", "infill"): ("LlamaCompletion", "LlamaCompletion"),
    ("openai", "embeddings"): ("Embedding", ""),
    ("openai", "rerank"): ("Ranking", ""),
    ("openai", "apply_template"): ("Prompt", ""),
    ("openai", "props"): ("Object", ""),
    ("openai", "slots"): ("Objects", ""),
    ("openai", "lora"): ("Objects", ""),
    ("openai", "responses"): ("Response", "ResponseEvent"),
    ("openai", "response"): ("Response", ""),
    ("openai", "forget_response"): ("ForgottenResponse", ""),
    ("openai", "input_items"): ("ItemList", ""),
    ("openai", "count"): ("InputTokens", ""),
    ("openai", "tokenize"): ("Tokens", ""),
    ("openai", "detokenize"): ("Text", ""),
    ("openai", "models"): ("ModelList", ""),
    ("openai", "model"): ("Model", ""),
    ("ollama", "version"): ("OllamaVersion", ""),
    ("ollama", "tags"): ("OllamaTags", ""),
    ("ollama", "ps"): ("OllamaRunning", ""),
    ("ollama", "show"): ("OllamaModel", ""),
    ("ollama", "chat"): ("OllamaChat", "OllamaChat"),
    ("ollama", "generate"): ("OllamaGenerate", "OllamaGenerate"),
    ("ollama", "embed"): ("OllamaEmbed", ""),
    ("ollama", "embeddings"): ("OllamaEmbedding", ""),
    ("ollama", "pull"): ("OllamaProgress", "OllamaProgress"),
    ("ollama", "create"): ("OllamaProgress", "OllamaProgress"),
    ("anthropic", "messages"): ("AnthropicMessage", "AnthropicEvent"),
    ("anthropic", "count_tokens"): ("InputTokens", ""),
}
"""The whole answer of each operation, and the pieces of its stream; the rest have no body."""
