"""FlashQuant: client of the KV-cache node, vLLM connector, calibration. Import opens nothing."""

__version__ = "0.1.0"
