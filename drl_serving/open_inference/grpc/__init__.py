"""The Open Inference Protocol V2 over gRPC; imported only where `serving.grpc_port` is set."""
