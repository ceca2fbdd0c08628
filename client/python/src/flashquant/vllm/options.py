"""Options of the connector: `kv_connector_extra_config`, and what one request may override."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashquant.client import Deadlines
from flashquant.wire import Profile

CODEC_SET_HEADER_BYTES = 64
CODEC_SET_ID = slice(24, 56)
ENDPOINT = re.compile(r"unix:///.+|[^/]+:[0-9]{1,5}")
NAMESPACE_NAME = re.compile(r"[a-zA-Z0-9._/-]{1,128}")
REQUEST_PROFILE = "flashquant_profile"
REQUEST_MIN_PROFILE = "flashquant_min_profile"
REQUEST_SAVE = "flashquant_save"


@dataclass(frozen=True)
class Options:
    """Spelled as in `kv_connector_extra_config`."""

    endpoint: str = "unix:///run/flashquant/flashquant.sock"
    profile: str = "compact"
    min_profile: str = ""          # floor of what is loaded; empty: no less than `profile`
    namespace: str = ""            # name at the node; empty: made from the model's identity
    codec_set: str = ""            # path of the model's .fqcs file
    weights_digest: str = ""       # empty: from the weight files, see identity.py
    lookup_timeout_ms: float = 100.0
    load_timeout_ms: float = 5000.0
    store_timeout_ms: float = 10000.0
    staging_bytes: int = 256 << 20
    nccl: bool = True              # whether pages may go to a node's GPU by NCCL
    nccl_window_bytes: int = 1 << 30  # of GPU memory for that, here and at the node
    save: bool = True
    max_match_tokens: int = 0      # longest prefix to load; 0: no limit

    @property
    def deadlines(self) -> Deadlines:
        """In seconds."""
        return Deadlines(self.lookup_timeout_ms / 1e3, self.load_timeout_ms / 1e3,
                         self.store_timeout_ms / 1e3)


@dataclass(frozen=True)
class Policy:
    """How one request is stored, if it is, and the least it loads."""

    profile: Profile
    floor: Profile
    save: bool = True


def parse_options(config: Mapping[str, Any]) -> Options:
    """Options of an engine. ValueError names the option and its value."""
    fields = {field.name: field for field in dataclasses.fields(Options)}
    for name, value in config.items():
        if name not in fields:
            raise ValueError(f"FlashQuant: unknown option {name!r}; known: {', '.join(fields)}")
        check_type(name, value, fields[name].type)
    options = Options(**config)
    policy_of(options, None)
    for name in ("lookup_timeout_ms", "load_timeout_ms", "store_timeout_ms", "staging_bytes",
                 "nccl_window_bytes"):
        if not getattr(options, name) > 0:
            raise ValueError(f"FlashQuant: {name} must be > 0, got {getattr(options, name)}")
    if not ENDPOINT.fullmatch(options.endpoint):
        raise ValueError(f"FlashQuant: endpoint {options.endpoint!r} is neither unix:///path nor "
                         "host:port")
    if options.namespace and not NAMESPACE_NAME.fullmatch(options.namespace):
        raise ValueError(f"FlashQuant: namespace {options.namespace!r} is not 1..128 of "
                         "a-z A-Z 0-9 . _ / -")
    if options.max_match_tokens < 0:
        raise ValueError(f"FlashQuant: max_match_tokens must be >= 0, got "
                         f"{options.max_match_tokens}")
    return options


def check_type(name: str, value: object, kind: type) -> None:
    """ValueError unless `value` is of `kind`; an int may stand for a float, a bool for nothing."""
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"FlashQuant: {name} must be of type {kind.__name__}, got {value!r}")


def policy_of(options: Options, request_params: Mapping[str, Any] | None) -> Policy:
    """Policy of a request with these `kv_transfer_params`. ValueError says what does not fit."""
    params = request_params or {}
    profile = Profile.parse(params.get(REQUEST_PROFILE, options.profile))
    if profile.needs_codec_set and not options.codec_set:
        raise ValueError(f"FlashQuant: profile {profile.label} needs codec_set (path of the "
                         "model's .fqcs file); exact and universal do not")
    default_floor = options.min_profile if REQUEST_PROFILE not in params else ""
    label = params.get(REQUEST_MIN_PROFILE, default_floor)
    floor = Profile.parse(label) if label else profile.own_floor
    if floor > Profile.COMPACT:
        raise ValueError(f"FlashQuant: min_profile {floor.label}: use exact, near-lossless or "
                         "compact")
    save = params.get(REQUEST_SAVE, True)
    check_type(REQUEST_SAVE, save, bool)
    return Policy(profile, floor, save)


def codec_set_id(path: str) -> bytes:
    """Id of a codec-set file (FORMAT.md 7), or empty for no path. ValueError when it is none."""
    if not path:
        return b""
    try:
        with Path(path).open("rb") as file:
            header = file.read(CODEC_SET_HEADER_BYTES)
    except OSError as error:
        raise ValueError(f"FlashQuant: codec_set {path}: {error.strerror}") from error
    if len(header) < CODEC_SET_HEADER_BYTES or header[:4] != b"FQCS":
        raise ValueError(f"FlashQuant: codec_set {path} is not a codec-set file")
    return header[CODEC_SET_ID]
