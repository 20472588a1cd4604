"""A hub that does not answer is asked once, and what the cache has is used."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from panovlm.errors import ConfigError
from panovlm.models.hub import place_of, unanswered
from panovlm.models.language.backbone import language_config
from panovlm.models.language.tokenizer import load_tokenizer
from panovlm.models.vision.pretrained import tower_config, tower_processor


class Server:
    """Counts those who come, and says the same to all of them."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:  # closed
                return
            self.asked += 1
            with caller:
                caller.recv(65536)
                caller.sendall(self.answer)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Start a hub with an empty local cache; it hangs up unless it is told what to answer."""
    servers: list[Server] = []

    def start(answer: bytes = b"") -> Server:
        servers.append(Server(answer))
        template = f"{servers[-1].url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return servers[-1]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield start
    for server in servers:
        server.socket.close()


@pytest.fixture
def cached(tmp_path) -> Iterator[str]:
    """Put files into the cache as of a model of the hub; gives its name."""
    folder = tmp_path / "cache" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 24}))
    return "org/name"


@pytest.mark.parametrize("read", [load_tokenizer, language_config, tower_config, tower_processor])
def test_it_is_asked_once(hub, read):
    server = hub()
    with pytest.raises(ConfigError, match=r"'org/name'.* the hub does not answer \(.*asked once"):
        read("org/name")
    assert server.asked == 1


def test_what_it_answers_counts(hub):
    server = hub(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert unanswered("org/name") is None
    assert place_of("org/name") == "org/name"
    assert server.asked == 2


def test_the_cache_stands_in(hub, cached):
    server = hub()
    assert language_config(cached).hidden_size == 24
    assert server.asked == 1
    with pytest.raises(ConfigError, match="preprocessor_config"):  # nobody knows if there is one
        tower_processor(cached)


def test_a_cached_model_without_tokenizer_gives_none(hub, cached):
    """transformers makes an empty one of the family's class."""
    hub()
    with pytest.raises(ConfigError, match="has no vocabulary"):
        load_tokenizer(cached)
