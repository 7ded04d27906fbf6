"""Which texts go into the next request to a worker: pure policy, no threads, no clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from service.worker import balance
from service.worker.remote_parts import RemoteText

# Jobs that do not fit into a request are passed over for later ones that do, so many at most.
_MAX_PASSED_OVER = 64


class Waiting:
    """Texts that no worker has room for yet, in jobs: what one caller submitted together.

    Jobs take turns, so that a large one keeps no small one waiting for long. A request holds texts of one scope;
    completions of one prompt go together where they fit into a batch. What comes back from a worker goes first.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        """`max_batch_tokens` is the most in one request; a longer text goes alone."""
        self._max_batch_tokens = max_batch_tokens
        self._again: deque[deque[RemoteText]] = deque()
        self._jobs: deque[deque[RemoteText]] = deque()

    def add(self, texts: Sequence[RemoteText]) -> None:
        """A job, of one scope."""
        self._jobs.append(deque(texts))

    def put_back(self, texts: Sequence[RemoteText]) -> None:
        """Texts of one scope and one part that were on their way: they go before all others."""
        if texts:
            self._again.appendleft(deque(texts))

    def head(self) -> RemoteText | None:
        """The text that is next, if any waits; texts that are settled are dropped."""
        for queue in (self._again, self._jobs):
            while queue:
                job = queue[0]
                while job and job[0].settled:
                    job.popleft()
                if job:
                    return job[0]
                queue.popleft()
        return None

    def take(self, limit: int) -> list[RemoteText]:
        """The texts of the next request, `head` the first of them.

        Args:
            limit: Tokens after which no other prompt is begun. Those of one that was begun may fill a batch.
        """
        taken: list[RemoteText] = []
        tokens = 0
        passed_over = 0
        for queue in (self._again, self._jobs):
            seen: list[deque[RemoteText]] = []
            while queue and passed_over < _MAX_PASSED_OVER:
                job = queue.popleft()
                before = len(taken)
                tokens = self._take_from(job, taken, tokens, limit)
                passed_over += len(taken) == before
                if job and queue is self._jobs and before == 0 and taken:
                    queue.append(job)  # it had its turn
                    break
                if job:
                    seen.append(job)
            queue.extendleft(reversed(seen))
        return taken

    def take_all(self) -> list[RemoteText]:
        """Everything that waits."""
        texts = [text for queue in (self._again, self._jobs) for job in queue for text in job]
        self._again.clear()
        self._jobs.clear()
        return texts

    def _take_from(self, job: deque[RemoteText], taken: list[RemoteText], tokens: int, limit: int) -> int:
        """Move what fits from the front of a job; returns the tokens in the request then."""
        while job:
            text = job[0]
            if text.settled:
                job.popleft()
                continue
            if taken and not self._fits(job, taken, tokens, limit):
                break
            taken.append(job.popleft())
            tokens += text.tokens
        return tokens

    def _fits(self, job: deque[RemoteText], taken: Sequence[RemoteText], tokens: int, limit: int) -> bool:
        text, first, last = job[0], taken[0], taken[-1]
        if text.scope != first.scope or text.part is not first.part:
            return False
        if any(balance.belong_together(text.blocks, other.blocks) for other in (last, first)):
            return balance.fits(tokens, len(taken), text.tokens, self._max_batch_tokens)
        return balance.fits(tokens, len(taken), text.tokens, limit) and not self._would_split(job, tokens)

    def _would_split(self, job: deque[RemoteText], tokens: int) -> bool:
        """Whether the next texts of a job belong together, and fit into a request of their own but not into this."""
        first, together = job[0], 0
        for text in job:
            if together and not balance.belong_together(first.blocks, text.blocks):
                break
            together += text.tokens
            if together > self._max_batch_tokens:
                return False
        return tokens + together > self._max_batch_tokens
