"""The naive design: a Flask application that takes models as JSON, waits for all clients, and averages."""

import threading

import numpy as np
from flask import Flask, Response, jsonify, request
from job import Job, Snapshots, read_job


def make_app(job: Job) -> Flask:
    """The application."""
    app, lock, snapshots = Flask(__name__), threading.Lock(), Snapshots(job)
    clients = len(job.ports)
    state = {"round": 0, "model": job.initial()}
    received = []

    @app.get("/model")
    def model() -> tuple[str, int] | Response:
        with lock:
            if request.args.get("known", -1, int) >= state["round"]:
                return "", 204
            return jsonify(round=state["round"], weights=[tensor.tolist() for tensor in state["model"]])

    @app.post("/update")
    def update() -> tuple[str, int]:
        body = request.get_json()
        weights = [np.array(tensor, np.float32) for tensor in body["weights"]]
        with lock:
            received.append(weights)
            if len(received) == clients:
                state["model"] = [np.mean(tensors, axis=0) for tensors in zip(*received, strict=True)]
                state["round"] += 1
                received.clear()
                snapshots.offer(state["round"] * clients, lambda: state["model"])
        return "", 204

    return app


def main() -> None:
    """Serve until killed, with the server that Flask brings."""
    job = read_job()
    make_app(job).run(host="127.0.0.1", port=job.port, threaded=True)


if __name__ == "__main__":
    main()
