"""A server in OpenAI's protocol whose answers a test chooses."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FakeServer:
    """`answer(model, prompt)` gives the text, or a number for an HTTP status; requests are counted."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = Counter()  # (model, prompt) -> requests
        self.temperatures = Counter()  # of requests
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                fake.asked[body["model"], prompt] += 1
                fake.temperatures[body["temperature"]] += 1
                text = fake.answer(body["model"], prompt)
                status = text if isinstance(text, int) else 200
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                content = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
                content = json.dumps(content if status == 200 else {"error": {"message": "no"}}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512  # so that a busy machine refuses no connection

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(FakeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
