"""FlashQuant: client of the KV-cache node, vLLM connector, calibration. Importing it opens nothing."""

__version__ = "0.1.0"
