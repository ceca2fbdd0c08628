"""Entry point `vllm.general_plugins`: makes the connector known by its name."""

NAME = "FlashQuantConnector"


def register() -> None:
    """Called by vLLM in each of its processes, sometimes more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "flashquant.vllm.connector", NAME)
