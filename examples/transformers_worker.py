"""A worker of nothing but transformers: serves an exported checkpoint behind the REST layer's ENGINE_URL.

    metareward checkpoint export-hf runs/mine runs/mine-hf
    python examples/transformers_worker.py runs/mine-hf HEADS_ID --port 8100
    ENGINE_URL=http://127.0.0.1:8100 metareward serve --checkpoint runs/mine

The simplest thing that speaks the protocol (`GET /v1/models`, `POST /classify` with token ids): one batch at a time,
padded, nothing shared. It imports nothing of metareward; take it to write a worker of another engine.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification


class BadRequest(Exception):
    """The caller's mistake, in words."""


class Classifier:
    """The exported model as it is; one caller at a time."""

    def __init__(self, directory: str, device: str) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(directory).to(device).eval()
        self.device = device
        self.vocabulary = self.model.get_input_embeddings().num_embeddings
        self.longest = self.model.config.max_position_embeddings
        self._one_at_a_time = threading.Lock()

    def logits(self, texts: Any) -> list[list[float]]:
        """A h of each text, texts as lists of token ids."""
        if not (isinstance(texts, list) and all(self._readable(ids) for ids in texts)):
            raise BadRequest(f"input must be lists of 1 to {self.longest} token ids below {self.vocabulary}")
        if not texts:
            return []
        width, pad = max(map(len, texts)), self.model.config.pad_token_id
        ids = torch.tensor([[*each, *[pad] * (width - len(each))] for each in texts], device=self.device)
        mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in texts], device=self.device)
        with self._one_at_a_time, torch.inference_mode():
            answer: list[list[float]] = self.model(input_ids=ids, attention_mask=mask).logits.float().tolist()
        return answer

    def _readable(self, ids: Any) -> bool:
        if not (isinstance(ids, list) and 1 <= len(ids) <= self.longest):
            return False
        return all(type(each) is int and 0 <= each < self.vocabulary for each in ids)


def handler(classifier: Classifier, name: str) -> type[BaseHTTPRequestHandler]:
    """What answers each request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            dtype = str(classifier.model.dtype).removeprefix("torch.")
            # `dtype` is more than vLLM says: the REST layer then knows how exact the golden texts must be.
            served = {"id": name, "object": "model", "owned_by": "transformers", "dtype": dtype}
            self.answer(200, {"object": "list", "data": [served]})

        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if request["model"] != name:
                    self.answer(404, self.problem("NotFoundError", "another model is served here", 404))
                    return
                rows = classifier.logits(request["input"])
            except (BadRequest, KeyError, TypeError, ValueError) as error:
                self.answer(400, self.problem("BadRequestError", str(error), 400))
                return
            data = [
                {"index": index, "label": None, "probs": logits, "num_classes": len(logits)}
                for index, logits in enumerate(rows)
            ]
            self.answer(200, {"object": "list", "model": name, "data": data})

        def problem(self, kind: str, message: str, code: int) -> dict[str, Any]:
            return {"error": {"message": message, "type": kind, "param": None, "code": code}}

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    """Load, listen, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="directory that `metareward checkpoint export-hf` wrote")
    parser.add_argument("heads_id", help="as that command printed it")
    parser.add_argument("--port", type=int, default=8100, help="0 picks a free one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    classifier = Classifier(arguments.export, arguments.device)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), handler(classifier, arguments.heads_id))
    print(f"classify http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
