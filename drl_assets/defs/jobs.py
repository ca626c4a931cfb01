"""Asset jobs: `ingest` makes experiences of a batch, `train` a release of experiences."""

import dagster as dg

ingest = dg.define_asset_job(
    "ingest",
    selection=dg.AssetSelection.assets("telemetry_batches", "normalized_states", "experiences"),
    description="One landed batch: telemetry, states, experiences, in one run.",
    tags={"dagster/max_retries": "3"},
)

train = dg.define_asset_job(
    "train",
    selection=dg.AssetSelection.assets(
        "trained_checkpoint",
        "policy_evaluation",
        "onnx_model",
        "published_model",
        "attack_patterns",
    ),
    description="From new experiences to a checked and released model.",
    tags={"dagster/max_retries": "2"},
)
