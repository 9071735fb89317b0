"""A package index on the loopback: source distributions and wheels made for a test, with faults."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "2026.10.11549"
CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.14)
project("llama.cpp" C CXX)
set(LLAMA_BUILD_NUMBER 0 CACHE STRING "")
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
if(NOT GGML_NATIVE OR LLAMA_BUILD_TESTS)
  message(FATAL_ERROR "not the flags of a native build")
endif()
add_library(common STATIC first.cpp)
add_custom_command(OUTPUT gate.cpp DEPENDS common
  COMMAND sh ${CMAKE_SOURCE_DIR}/wait.sh COMMAND ${CMAKE_COMMAND} -E touch gate.cpp)
foreach(program llama-server llama-quantize llama-bench llama-perplexity)
  add_executable(${program} main.cpp)
  target_link_libraries(${program} common)
endforeach()
target_sources(llama-server PRIVATE gate.cpp)
target_compile_definitions(llama-server PRIVATE NUMBER="${LLAMA_BUILD_NUMBER}")
"""
MAIN = """
#include <cstdio>
#include <cstring>
#include <unistd.h>
#ifndef NUMBER
#define NUMBER "0"
#endif
int first();
int main(int count, char ** words) {
    if (count > 1 && !strcmp(words[1], "--version")) {
        printf("version: 0.6.0-dev (build " NUMBER ", commit unknown)\\n");
        return first();
    }
    pause();
}
"""
WAIT = '[ -z "$GATE" ] || { touch "$GATE.reached"; while [ ! -e "$GATE" ]; do sleep 0.05; done; }\n'
PROJECT = {
    "CMakeLists.txt": CMAKE_LISTS,
    "main.cpp": MAIN,
    "first.cpp": "int first() { return 0; }\n",
    "wait.sh": WAIT,
}
"""A project with llama.cpp's four programs. Where GATE names a file, the build waits for it."""
FORKS_STEP = """
execute_process(WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} RESULT_VARIABLE failed
  COMMAND ${CMAKE_COMMAND} -DCMAKE_C_COMPILER_ID=${CMAKE_C_COMPILER_ID}
    -P common/cmake/build-info-gen-cpp.cmake)
if(failed)
  message(FATAL_ERROR "what the version is was not written")
endif()
target_sources(llama-server PRIVATE common/build-info.cpp)
"""
BUILD_INFO = 'int LLAMA_BUILD_NUMBER = @BUILD_NUMBER@;\nchar const * BY = "@BUILD_COMPILER@";\n'


@dataclass(frozen=True)
class Asked:
    """One request that the index got."""

    path: str
    range: str


@dataclass
class Index:
    """What the index serves, how it misbehaves, and what it was asked for."""

    files: dict[str, bytes]
    sha256: dict[str, str] = field(default_factory=dict)
    breaks_after: int = 0
    """Bytes after which the next transfer of a file breaks off, once."""
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def page(self, package: str) -> bytes:
        """The page of a package as PEP 691 has it."""
        listed = [
            {
                "filename": name,
                "url": f"/files/{name}",
                "hashes": {"sha256": self.sha256.get(name) or hashlib.sha256(data).hexdigest()},
                "size": len(data),
            }
            for name, data in self.files.items()
            if re.split(r"-\d", name)[0].replace("_", "-") == package
        ]
        meta = {"api-version": "1.0"}
        return json.dumps({"meta": meta, "name": package, "files": listed}).encode()


def sdist(changed: Mapping[str, str] = {}, version: str = VERSION) -> dict[str, bytes]:
    """A source distribution of `xllamacpp` with the small project where llama.cpp lies in it."""
    return _sdist(f"xllamacpp-{version}", "thirdparty/llama.cpp", {**PROJECT, **changed})


def forks_sdist() -> dict[str, bytes]:
    """One of `ik-llama-cpp-python`: the project writes what its version is by a missing script."""
    lists = "set(LLAMA_BUILD_NUMBER 0)\n" + CMAKE_LISTS + FORKS_STEP
    files = {**PROJECT, "CMakeLists.txt": lists, "common/build-info.cpp.in": BUILD_INFO}
    return _sdist("ik_llama_cpp_python-0.1.5", "vendor/ik_llama.cpp", files)


def _sdist(name: str, folder: str, files: Mapping[str, str]) -> dict[str, bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{name}/{folder}/{path}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return {f"{name}.tar.gz": packed.getvalue()}


def script_wheel(package: str, script: str) -> dict[str, bytes]:
    """A wheel that installs one script."""
    packed = io.BytesIO()
    info = f"{package}-9.0.dist-info"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{package}-9.0.data/scripts/{package}", script)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return {f"{package}-9.0-py3-none-any.whl": packed.getvalue()}


@contextmanager
def serve(index: Index) -> Iterator[Index]:
    """Serve an index while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            """Answer a page or a file, or the rest of one."""
            index.asked.append(Asked(self.path, self.headers.get("Range") or ""))
            kind, _, name = self.path.strip("/").partition("/")
            if kind == "simple":
                self._send(index.page(name), "application/vnd.pypi.simple.v1+json")
            elif name in index.files:
                self._send(index.files[name], "application/octet-stream")
            else:
                self.send_error(404)

        def _send(self, data: bytes, kind: str) -> None:
            start = re.match(r"bytes=(\d+)-$", self.headers.get("Range") or "")
            rest = data[int(start[1]) :] if start else data
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if index.breaks_after and kind.endswith("octet-stream"):
                rest, index.breaks_after = rest[: index.breaks_after], 0
                self.close_connection = True
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
