"""The batcher alone, with an encoder that takes as long as it is told."""

import asyncio
import time

import numpy as np

from adde.serving.http.batching import PATIENCE, Batcher
from adde.serving.http.metrics import Metrics
from adde.serving.http.requests.admission import Gate

PICTURE = np.zeros((2, 2, 3), np.uint8)


def test_where_the_encoder_is_slow_a_batch_waits_for_what_is_being_decoded():
    sizes, seconds = [], 0.5

    def embed(pictures):
        sizes.append(len(pictures))
        time.sleep(seconds)
        return list(pictures)

    async def ask():
        # Another picture is always on its way, and the setting alone would not wait for it.
        batcher = Batcher(embed, lambda: 1, Metrics(), lanes=1, max_batch=8, max_wait=0.001)
        await batcher.embed(PICTURE)
        first = asyncio.create_task(batcher.embed(PICTURE))
        await asyncio.sleep(PATIENCE * seconds / 3)
        start = time.monotonic()
        await asyncio.gather(first, batcher.embed(PICTURE))
        waited = time.monotonic() - start - seconds
        await batcher.close()
        return waited

    waited = asyncio.run(ask())
    assert sizes == [1, 2]
    assert waited < 3 * PATIENCE * seconds  # and no longer, though one is still on its way


def test_who_turns_out_to_bring_no_picture_is_waited_for_no_longer():
    async def ask():
        metrics = Metrics()
        gate = Gate(2, metrics, lambda: False)
        wait = 600.0
        batcher = Batcher(list, lambda: gate.coming, metrics, lanes=2, max_batch=8, max_wait=wait)
        gate.listeners.add(batcher.wake)
        with gate.place("") as first, gate.place("") as second:
            first.settle()
            embedded = asyncio.create_task(batcher.embed(PICTURE))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not embedded.done()
            second.settle()
            await asyncio.wait_for(embedded, 60)
        await batcher.close()

    asyncio.run(ask())
