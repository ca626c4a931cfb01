"""MLServer: a custom runtime that takes the graph's tensors in V2."""

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.serving.peers.scoring import session


class PolicyRuntime(MLModel):  # type: ignore[misc]
    """Scores windows."""

    async def load(self) -> bool:
        """Open the graph."""
        self.session = session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Tensors `windows` and `carry`, FP64 [N, 14] -> `q_values`."""
        tensors = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        q_values = self.session.run(["q_values"], tensors)[0]
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("q_values", q_values)]
        )
