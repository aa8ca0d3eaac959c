"""The batcher alone, with an encoder of adjustable speed."""

import asyncio
import time

import numpy as np

from adde.serving.http.batching import WAIT_SHARE, Batcher
from adde.serving.http.metrics import Metrics
from adde.serving.http.requests.admission import Admission

PICTURE = np.zeros((2, 2, 3), np.uint8)


def test_a_batch_waits_for_pending_pictures_if_the_encoder_is_slow():
    sizes, seconds = [], 0.5

    def embed(pictures):
        sizes.append(len(pictures))
        time.sleep(seconds)
        return list(pictures)

    async def ask():
        # Another picture is always pending; max_wait alone would not wait for it.
        batcher = Batcher(embed, lambda: 1, Metrics(), lanes=1, max_batch=8, max_wait=0.001)
        await batcher.embed(PICTURE)
        first = asyncio.create_task(batcher.embed(PICTURE))
        await asyncio.sleep(WAIT_SHARE * seconds / 3)
        start = time.monotonic()
        await asyncio.gather(first, batcher.embed(PICTURE))
        waited = time.monotonic() - start - seconds
        await batcher.close()
        return waited

    waited = asyncio.run(ask())
    assert sizes == [1, 2]
    assert waited < 3 * WAIT_SHARE * seconds  # and no longer, though a picture is still pending


def test_a_request_without_a_picture_ends_the_wait():
    async def ask():
        metrics = Metrics()
        admission = Admission(2, metrics, lambda: False)
        wait = 600.0
        batcher = Batcher(
            list, lambda: admission.pending_pictures, metrics, lanes=2, max_batch=8, max_wait=wait
        )
        admission.listeners.add(batcher.wake)
        with admission.admit("") as first, admission.admit("") as second:
            first.no_more_pictures()
            embedded = asyncio.create_task(batcher.embed(PICTURE))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not embedded.done()
            second.no_more_pictures()
            await asyncio.wait_for(embedded, 60)
        await batcher.close()

    asyncio.run(ask())
