"""The naive design's client: asks for the next round's model, trains, posts its own."""

import time

import numpy as np
import requests
from job import read_job
from learner import Learner

_POLL_SECONDS = 0.1


def main() -> None:
    """Work until killed."""
    job = read_job()
    learner, session, known = Learner(job), requests.Session(), -1
    server = f"http://127.0.0.1:{job.ports[job.client]}"
    while True:
        answer = session.get(f"{server}/model", params={"known": known})
        answer.raise_for_status()
        if answer.status_code == requests.codes.no_content:
            time.sleep(_POLL_SECONDS)
            continue
        body = answer.json()
        known = body["round"]
        weights = learner.fit([np.array(tensor, np.float32) for tensor in body["weights"]])
        update = {"round": known, "weights": [tensor.tolist() for tensor in weights]}
        session.post(f"{server}/update", json=update).raise_for_status()


if __name__ == "__main__":
    main()
