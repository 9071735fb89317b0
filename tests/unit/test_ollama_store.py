"""Names and manifests of Ollama's store."""

from __future__ import annotations

from typing import Any

import pytest

from enginehouse.core.ollama_store import ManifestError, layers_of, manifest_path, name_of_manifest

MODEL = "application/vnd.ollama.image.model"
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2/latest"),
        ("llama3.2:3b", "registry.ollama.ai/library/llama3.2/3b"),
        ("me/model:q4", "registry.ollama.ai/me/model/q4"),
        ("hf.co/owner/repo:Q4_K_M", "hf.co/owner/repo/Q4_K_M"),
        ("localhost:5000/me/model", "localhost:5000/me/model/latest"),
    ],
)
def test_a_name_has_one_manifest(name: str, path: str) -> None:
    """Host, namespace and tag have their defaults, and the path leads back to the name."""
    assert manifest_path(name) == path
    shown = name_of_manifest(path.split("/"))
    assert manifest_path(shown) == path


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a/b/c/d", "x:..", "a b", "/x", "x:"])
def test_what_is_no_name_is_refused(name: str) -> None:
    """Nothing leads out of the store."""
    with pytest.raises(ManifestError):
        manifest_path(name)


def test_layers_have_their_roles() -> None:
    """Known layers become files of the blobs folder, unknown ones are left out."""
    entries = [
        {"mediaType": MODEL, "digest": DIGEST, "size": 7},
        {"mediaType": "application/vnd.ollama.image.license", "digest": DIGEST, "size": 1},
        {"mediaType": "application/new", "digest": DIGEST, "size": 1},
    ]
    found = layers_of({"layers": entries})
    assert [(layer.role, layer.bytes) for layer in found] == [("weights", 7), ("license", 1)]
    assert found[0].blob == "sha256-" + "a" * 64


@pytest.mark.parametrize(
    "layers",
    [None, [], [{}], [{"mediaType": MODEL, "digest": "sha256:../../x"}], ["x"],
     [{"mediaType": "application/new", "digest": DIGEST}]],
)  # fmt: skip
def test_a_manifest_without_a_model_is_refused(layers: Any) -> None:
    """No layers, a digest that is a path, no model: told, not followed."""
    with pytest.raises(ManifestError):
        layers_of({"layers": layers})
