"""Single scores of concurrent threads, gathered into requests by threads that are there while there is work."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from metareward_client._call import Call
from metareward_client._together import Batch, Wish, take
from metareward_client.answers import Score
from metareward_client.errors import DeadlineExceeded, RequestError

IDLE_S = 1.0
"""How long a thread stays that has nothing to send."""


class Rewards:
    """Gathers wishes and sends them.

    The first wish opens a window; when it closes, or a batch is full, all that came goes. While `most_senders` requests
    are under way, wishes gather until one of them is answered: the busier the server, the larger the requests.

    Args:
        ask: Answers a call until a time.
        batch_size: Most wishes in a request.
        window_s: How long the first one waits for others.
        most_senders: Most requests at a time.
    """

    def __init__(
        self,
        ask: Callable[[Call[list[Score]], float], list[Score]],
        batch_size: int,
        window_s: float,
        most_senders: int,
    ) -> None:
        self._ask = ask
        self._batch_size = batch_size
        self._window_s = window_s
        self._most_senders = most_senders
        self._changed = threading.Condition()
        self._wishes: list[Wish] = []
        self._opened_at = 0.0
        self._gathering = False
        self._senders = 0
        self._idle = 0

    def reward(self, wish_with: Callable[[Future[Score]], Wish]) -> Score:
        """Wait for the score of one completion.

        Args:
            wish_with: Makes the wish for what will be waited for.

        Raises:
            MetarewardError: See the tree in `errors`.
        """
        promise: Future[Score] = Future()
        wish = wish_with(promise)
        with self._changed:
            if not self._wishes:
                self._opened_at = time.monotonic()
            self._wishes.append(wish)
            self._need_a_sender()
        try:
            error = promise.exception(max(0.0, wish.until - time.monotonic()))
        except concurrent.futures.TimeoutError:
            raise DeadlineExceeded("No answer in time.") from None
        finally:
            # Whoever is interrupted leaves, too.
            promise.cancel()
        if error is not None:
            raise error
        return promise.result()

    def _need_a_sender(self) -> None:
        # Who gathers looks whether the batch is full now, who is idle whether there is something to gather.
        self._changed.notify_all()
        if not self._idle and self._senders < self._most_senders:
            self._senders += 1
            threading.Thread(target=self._work, name="metareward-reward", daemon=True).start()

    def _work(self) -> None:
        while (batch := self._gather()) is not None:
            self._send(batch)

    def _gather(self) -> Batch | None:
        """The next batch; None when there was nothing to do for a while."""
        with self._changed:
            self._idle += 1
            wanted = self._changed.wait_for(lambda: self._wishes and not self._gathering, IDLE_S)
            self._idle -= 1
            if not wanted:
                self._senders -= 1
                return None
            self._gathering = True
            open_s = self._opened_at + self._window_s - time.monotonic()
            self._changed.wait_for(lambda: len(self._wishes) >= self._batch_size, max(0.0, open_s))
            batch = take(self._wishes, self._batch_size)
            self._gathering = False
            if self._wishes:
                self._need_a_sender()
            return batch

    def _send(self, batch: Batch) -> None:
        todo = [batch]
        while todo:
            batch = todo.pop()
            if batch.left:
                continue
            try:
                batch.answered(self._ask(batch.call(), batch.until))
            except RequestError as error:
                todo += batch.refused(error)
            except BaseException as error:
                # Whatever it is, those who wait must hear of it, and this thread goes on for others.
                batch.failed(error)
