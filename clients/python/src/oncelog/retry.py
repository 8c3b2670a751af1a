"""When to retry, when to give up, and when silence is a break."""

import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

DELAY_FIRST_SECONDS = 0.05
DELAY_SECONDS_MAX = 5.0
GIVE_UP_AFTER_SECONDS = 60.0


class Backoff:
    """The failures since the last progress."""

    def __init__(self) -> None:
        self._failures = 0
        self._broken_since = 0.0

    def progress(self) -> None:
        self._failures = 0

    def failure(self) -> float | None:
        """Counts a failure. Returns the seconds to wait before the next attempt; None to give up."""
        now = time.monotonic()
        if self._failures == 0:
            self._broken_since = now
        left = self._broken_since + GIVE_UP_AFTER_SECONDS - now
        if left <= 0:
            return None
        delay = min(DELAY_FIRST_SECONDS * 2.0 ** min(self._failures, 16), DELAY_SECONDS_MAX)
        self._failures += 1
        # At random, so that clients cut off together do not all come back at once.
        return min(delay * (0.5 + random.random() / 2), left)


class Watchdog:
    """Calls `on_silence` once after `seconds_max` without a message. Used with `with`."""

    def __init__(self, seconds_max: float, on_silence: Callable[[], object]) -> None:
        self.barked = False
        self._seconds_max = seconds_max
        self._on_silence = on_silence
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def wait_for_word(self) -> None:
        """From now on a message is due."""
        with self._changed:
            if self._deadline is None:
                self._changed.notify()
            # A later deadline needs no wake-up: the thread checks again at the earlier one.
            self._deadline = time.monotonic() + self._seconds_max

    def rest(self) -> None:
        """From now on no message is due."""
        with self._changed:
            self._deadline = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.barked = True
                    break
                self._changed.wait(left)
            else:
                return
        self._on_silence()
