import pytest

from hybrid_runtime.telemetry.secrets import HIDDEN, hidden, hidden_words

RANDOM = "aB3dE5gH7jK9mN1pQ3sT5vX7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_AUTH", "x"),
        ("TORCH_HUB_TOKEN", "x"),
        ("CUDA_PASSWORD", "x"),
        ("NCCL_X", "hf_abcdefgh12345678"),
        ("NCCL_X", "ghp_abcdefgh12345678"),
        ("NCCL_X", "AKIAIOSFODNN7EXAMPLE"),
        ("NCCL_X", "https://me:pw@host/path"),
        ("NCCL_X", "Bearer x"),
        ("NCCL_X", RANDOM),
        ("NCCL_X", "0123456789abcdef0123456789abcdef"),
        ("NCCL_X", "eyJhbGciOiJIUzI1NiJ9.e30.abc"),
    ],
)
def test_secrets_are_hidden(name: str, value: str) -> None:
    assert hidden(name, value) == HIDDEN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", "GPU-8f3a1c2e-1b2c-4d5e-9f00-0123456789ab,MIG-8f3a1c2e-1b2c-4d5e-9f00-0123456789ab"),
        ("NCCL_SOCKET_IFNAME", "eth0,ib0"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:512"),
        ("TORCH_HOME", "/models/Llama-3.1-8B-Instruct-FineTuned-2026/cache"),
        ("NCCL_TOPO_FILE", "/etc/nccl/topology_of_node17.xml"),
        ("OMP_PLACES", "{0:4},{4:4}"),
        ("TORCH_TOKENIZER", "bpe"),
        ("NCCL_NET", "tcp://10.0.0.1:29500"),
    ],
)
def test_settings_are_not(name: str, value: str) -> None:
    assert hidden(name, value) == value


def test_command_lines_lose_values_not_options() -> None:
    words = [
        "python",
        "-m",
        "job",
        "a.toml",
        "--api-key",
        "x",
        "--token=y",
        "HF_TOKEN=z",
        "--name",
        "n",
        RANDOM,
        "--quiet",
    ]
    shown = ["python", "-m", "job", "a.toml", "--api-key", HIDDEN, f"--token={HIDDEN}", f"HF_TOKEN={HIDDEN}"]
    assert hidden_words(words) == [*shown, "--name", "n", HIDDEN, "--quiet"]
