"""The served models under one name: what runs (`ServedModel`) and which of them (`ModelHolder`)."""

from drl_serving.models.holder import ModelHolder
from drl_serving.models.served import Float32, Scores, ServedModel

__all__ = ["Float32", "ModelHolder", "Scores", "ServedModel"]
