"""The numbers that Prometheus scrapes, in a registry of their own. Every name is declared here, once, with its help."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)


class Metrics:
    """One set per process of the service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.round = Gauge("tap_round", "Number of committed rounds.", registry=registry)
        self.connected = Gauge("tap_devices_connected", "Devices that are connected.", registry=registry)
        self.paused = Gauge("tap_paused", "1 while the federation is paused.", registry=registry)
        self.attempts = Counter(
            "tap_attempts", "Attempts at rounds, by how they ended.", ["outcome"], registry=registry
        )
        self.updates = Counter(
            "tap_updates",
            "Updates of devices, by what became of them, and rounds that devices declined.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            "tap_storage_retries", "Times that the disk or the database failed and was asked again.", registry=registry
        )
        self.refused = Counter(
            "tap_connections_refused", "Connections refused, by reason.", ["code"], registry=registry
        )
        self.sent = Counter("tap_sent_bytes", "Bytes of messages sent to devices.", registry=registry)
        self.received = Counter("tap_received_bytes", "Bytes of messages received from devices.", registry=registry)
        self.round_seconds = Histogram(
            "tap_round_seconds", "From the opening of an attempt to its commit.", buckets=SECONDS, registry=registry
        )
        self.aggregation_seconds = Histogram(
            "tap_aggregation_seconds",
            "From the last update of a round to its commit.",
            buckets=SECONDS,
            registry=registry,
        )
