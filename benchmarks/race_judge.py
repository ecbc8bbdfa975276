"""The judge: a process of its own that measures models on the test images, the same for all systems.

So measuring is nobody's processor time but its own. `python -m benchmarks.race_judge TEST.npz` reads paths of `.npy`
vectors, one a line, and answers each with its accuracy.
"""

import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.race_venvs import ROOT

_STOP_SECONDS = 5.0


class Judge:
    """Asks the process, and collects its answers.

    Args:
        test: the test images, `.npz`.
        log: file for its complaints.
    """

    def __init__(self, test: Path, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.race_judge", str(test)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        self._answers: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.asked = self.answered = 0
        threading.Thread(target=self._listen, name="judge", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.communicate(timeout=_STOP_SECONDS)

    def ask(self, model: Path) -> None:
        """Have a model measured; answers come in the order of the questions."""
        if self.process.stdin is None:
            raise RuntimeError("the judge has no ears")
        self.process.stdin.write(f"{model}\n")
        self.asked += 1

    def answers(self) -> list[float]:
        """The accuracies that have come since the last call."""
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        self.answered += len(found)
        return found

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self._answers.put(float(line))


def main() -> None:
    """Measure what standard input names."""
    from fedmq.edge_agent.torch_trainer import mlp  # torch is for the judge's process, not for its client's

    trainer = mlp({}, data=sys.argv[1])
    for line in sys.stdin:
        path = Path(line.strip())
        print(trainer.evaluate(np.load(path))["accuracy"], flush=True)
        path.unlink()


if __name__ == "__main__":
    main()
