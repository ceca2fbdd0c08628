"""flashquant.vllm.scoring with the recording connector."""

from flashquant.vllm import scoring

if __name__ == "__main__":
    scoring.CONNECTOR = {"kv_connector": "RecordingConnector",
                         "kv_connector_module_path": "recording_connector"}
    scoring.main()
