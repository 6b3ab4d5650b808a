"""Metrics: what /metrics tells Prometheus. One registry an app, so that tests and servers do not share counters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aut.serving.limits import Slots
from aut.serving.versions import Served

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
CLIPS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    def __init__(self, slots: Slots) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("aut_requests", "Requests by route and status.", ["route", "status"], registry=r)
        self.latency = Histogram("aut_request_seconds", "First byte to last.", ["route"], buckets=SECONDS, registry=r)
        self.refusals = Counter("aut_refused", "Requests refused, by reason.", ["reason"], registry=r)
        self.batches = Histogram("aut_batch_clips", "Clips computed together.", buckets=CLIPS, registry=r)
        self.passes = Histogram("aut_batch_seconds", "Time of one batch.", buckets=SECONDS, registry=r)
        self.audio = Counter("aut_audio_seconds", "Seconds of audio computed.", registry=r)
        self.swaps = Counter("aut_version_loaded", "Versions loaded since the start.", registry=r)
        self.version = Gauge("aut_version", "1 for the version that answers.", ["version", "weights"], registry=r)
        self.lost = Gauge("aut_workers_lost", "Processes that died at their work.", ["kind"], registry=r)
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        queue = Gauge("aut_queue_clips", "Clips admitted and not yet answered.", registry=r)
        queue.set_function(lambda: slots.clips)
        held = Gauge("aut_held_bytes", "Bytes of request bodies, or of their files, in memory.", registry=r)
        held.set_function(lambda: slots.bytes)
        answers = Gauge("aut_answer_bytes", "Bytes set aside for answers over 64 KB, until read.", registry=r)
        answers.set_function(lambda: slots.answers)

    def batched(self, clips: int, seconds: float, took_s: float) -> None:
        self.batches.observe(clips)
        self.passes.observe(took_s)
        self.audio.inc(seconds)

    def serving(self, served: Served) -> None:
        """A version took over."""
        self.swaps.inc()
        self.version.clear()
        self.version.labels(served.pointer.address, served.encoder.digest).set(1)

    def answered(self, route: str, status: int, took_s: float) -> None:
        if (route, status) not in self._answered:  # looking a child up by its labels takes as long as counting
            self._answered[route, status] = self.requests.labels(route, str(status)), self.latency.labels(route)
        requests, latency = self._answered[route, status]
        requests.inc()
        latency.observe(took_s)

    def text(self) -> bytes:
        return generate_latest(self.registry)
