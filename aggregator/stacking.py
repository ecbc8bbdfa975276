"""Stacking: where the next frame is put, so that those who come download least. Pure.

A frame costs every visitor that was not here since it was made (`Absence`), and each one named in a head some bytes
more. The next one can be put

- on top, where it is as small as it gets, while the stack grows for those who are away for long;
- on a lower frame, in the place of those above it. Everybody pays that once, those who were away for long pay less from
  then on. How often to do so is the question of the economic order quantity (Harris 1913, How many parts to make at
  once): what accrues until the next time has to be as much as the effort of one time, which is so when the gain is
  reckoned over half of the time since these frames were begun, but not over less than the time in which the usual
  visitors come once: each of them downloads the new frame, whichever it is, and a large one made anew with every
  frame is downloaded at every visit;
- on none: a keyframe. Everybody pays that once, too, and those who were here since it was made pay only what lies above
  it. A cycle from one keyframe to the next that lasts T versions costs a visitor on average

      A(T) = 1/T · Σ over t < T of (size of the keyframe · share of visitors that were away for more than t + above(t))

  where above(t) is what the frames on it cost when it is t versions old: as measured in this cycle, and for later as
  in the one before or as it was lately. The next one is due when to keep the present one, for however long, costs more
  than the best A does (the renewal reward theorem: Ross, Stochastic Processes, section 3.6).
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from .absence import MAX_VERSIONS, Absence

#: What a frame takes in a head.
_HEAD_BYTES: Final = 34
#: A frame in the place of several is smaller than those together; how much is learned, beginning with this.
_MERGED: Final = 0.8


class Stacking:
    """Decides, and learns from what came of it.

    Args:
        absence: of the visitors.
        frame_versions: between frames.
        max_frames: of a stack.
    """

    def __init__(self, absence: Absence, *, frame_versions: int, max_frames: int) -> None:
        self._absence, self._frame_versions, self._max_frames = absence, frame_versions, max_frames
        self._merged = _MERGED
        # What the frames on the keyframe cost a visitor when it was so many versions old, as far as known, and on the
        # keyframe before.
        self._above, self._known = np.zeros(MAX_VERSIONS + 1), 0
        self._former = np.zeros(0)

    def begin(self) -> None:
        """A keyframe was made."""
        self._former = self._above[: self._known].copy()
        self._above[0], self._known = _HEAD_BYTES, 1

    def place(self, version: int, frames: Sequence[tuple[int, int]], size: int, most: int) -> int:
        """How many of the frames to keep below the next one; 0 for a keyframe.

        Args:
            version: of the next frame.
            frames: version and bytes of each, keyframe first; at least one.
            size: of the next frame in bytes if it is put on top.
            most: bytes that a stack may have.
        """
        keyframe = frames[0][1]
        on_top = [*frames, (version, size)]
        stack, gain = on_top, 0.0 if self._fits(on_top, most) else -math.inf
        for kept in range(1, len(frames)):
            merged = [*frames[:kept], (version, self.expect(frames[kept:], size))]
            if not self._fits(merged, most):
                continue
            horizon = max(self._absence.usual(), (version - frames[kept][0]) // 2, 1)
            saved = self._cost(version, on_top, horizon) - self._cost(version, merged, horizon)
            if saved > gain:
                stack, gain = merged, saved
        if gain == -math.inf or self._is_due(version, keyframe, stack):
            return 0
        return len(stack) - 1

    def expect(self, frames: Sequence[tuple[int, int]], size: int) -> int:
        """How large a frame will be in the place of some frames and of the next one."""
        return math.ceil(self._merged * (sum(had for _, had in frames) + size))

    def learn(self, expected: int, size: int) -> None:
        """A frame that was put in the place of several is so large."""
        self._merged += 0.2 * self._merged * (size / expected - 1)

    def _fits(self, stack: Sequence[tuple[int, int]], most: int) -> bool:
        sizes = [size for _, size in stack]
        return len(sizes) <= self._max_frames and sum(sizes) <= most and sizes[-1] < sizes[0]

    def _cost(self, version: int, stack: Sequence[tuple[int, int]], horizon: int) -> float:
        return self._absence.cost(version, stack, horizon) + _HEAD_BYTES * len(stack)

    def _is_due(self, version: int, keyframe: int, stack: Sequence[tuple[int, int]]) -> bool:
        """Whether a new keyframe costs less than to keep this one below such a stack."""
        age = version - stack[0][0]
        if age > MAX_VERSIONS:
            return True
        above, known, former = self._above, self._known, self._former
        above[age] = self._cost(version, stack[1:], self._frame_versions) + _HEAD_BYTES
        above[known:age] = above[known - 1 if known else age]
        self._known = age + 1
        lately = above[age // 2 : age + 1].mean()
        forecast = above.copy()
        forecast[age + 1 :] = lately
        if former.shape[0] > age + 1:
            forecast[age + 1 : former.shape[0]] = former[age + 1 :]
            forecast[former.shape[0] :] = max(lately, former[former.shape[0] // 2 :].mean())
        costs = keyframe * self._absence.lacking() + forecast
        averages = np.cumsum(costs) / np.arange(1, MAX_VERSIONS + 2)
        shortest = self._frame_versions - 1
        ahead = np.cumsum(costs[age:] - averages[shortest:].min(initial=math.inf))[shortest:]
        return bool(ahead.min(initial=math.inf) >= 0)
