"""What `vllm serve` answers, as far as the engine asks; every request is written down before it is answered."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

arguments = sys.argv[1:]
fault = os.environ.get("FAKE_FAULT", "")
folder = Path(__file__).parent
lock, busy = threading.Lock(), 0
adapters = set()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
names = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "CUDA_VISIBLE_DEVICES", "VLLM_HOST_IP")
(folder / "started.json").write_text(
    json.dumps(
        {"argv": arguments, "pids": [os.getpid(), grandchild.pid], "environment": {k: os.environ.get(k) for k in names}}
    )
)
if fault == "dies":
    print("CUDA out of memory. Tried to allocate", flush=True)
    sys.exit(3)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): ...

    def send(self, status, body):
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.send(503 if fault == "never" else 200, "")

    def do_POST(self):
        global busy
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            busy += 1
            with (folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps({"path": self.path, "body": body, "busy": busy}) + chr(10))
        try:
            self.answer(body)
        finally:
            with lock:
                busy -= 1

    def answer(self, body):
        if self.path == "/v1/load_lora_adapter":
            files = sorted(p.name for p in Path(body["lora_path"]).iterdir())
            if body["lora_name"] in adapters or "adapter_model.safetensors" not in files:
                return self.send(400, {"error": {"message": f"cannot load from {files}"}})
            adapters.add(body["lora_name"])
            return self.send(200, "Success: LoRA adapter added successfully.")
        if self.path == "/v1/unload_lora_adapter":
            if body["lora_name"] not in adapters:
                return self.send(404, {"error": {"message": "no such adapter"}})
            adapters.discard(body["lora_name"])
            return self.send(200, "Success")
        if body["model"] not in {arguments[0], *adapters}:
            return self.send(404, {"error": {"message": f"The model {body['model']} does not exist."}})
        if fault == "500":
            return self.send(500, {"error": {"message": "EngineCore encountered an issue"}})
        if fault == "killed":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "no ids":
            return self.send(200, {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]})
        time.sleep(0.3 if fault == "slow" else 0.0)
        ids = [10 + body["seed"] % 1000, len(body["prompt"]), sum(body["prompt"]) % 1000 + 10]
        stops = body["seed"] % 2 == 0 and body["max_tokens"] > 3
        if stops and fault != "no end":
            ids.append(body["stop_token_ids"][0])
        ids = ids[: body["max_tokens"]]
        why = "stop" if stops else "length"
        self.send(200, {"choices": [{"index": 0, "text": "", "token_ids": ids, "finish_reason": why}]})


class Server(ThreadingHTTPServer):
    request_queue_size = 256


port = int(arguments[arguments.index("--port") + 1])
host = arguments[arguments.index("--host") + 1]
assert host == "127.0.0.1"
Server((host, port), Handler).serve_forever()
