"""The model of the benchmark: a graph of the default learner's shape, signed and released."""

from pathlib import Path

from benchmarks.release_variants import Publisher


def publish(home: Path) -> Path:
    """Release it into a home folder; gives the path of the graph."""
    publisher = Publisher(home)
    released = publisher.store.publish(publisher.graph, publisher.manifest(0), publisher.key)
    return home / "models" / released.blob
