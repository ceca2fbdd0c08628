"""The vLLM connector. Only connector.py, probe.py, plugin.py and stats.py import vllm."""
