"""From process start to the first token: `bindlm ask` beside a plain transformers script on the same language model.

    .venv/bin/python benchmarks/first_token.py

Both are whole processes, run in turn; the peer loads the same converted weights with transformers alone and generates
one token of the same question without a picture.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bindlm.checkpoints import convert_gguf, resolve
from bindlm.configuration import BindLMConfig
from bindlm.loading import MINI

QUESTION = "What is this?"
PEER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(output[0, -1]), flush=True)
"""


def first_output(command: list[str]) -> float:
    """Seconds until the process prints something."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{command[:4]} failed with {process.returncode}")
    return seconds


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--image", default=str(MINI / "demo.jpg"))
    options = parser.parse_args()
    reference = BindLMConfig.from_pretrained(MINI).language_model
    assert reference is not None
    folder: Path = convert_gguf(resolve(reference))
    ways = {
        "bindlm ask --image": [sys.executable, "-m", "bindlm", "ask", QUESTION, "--image", options.image],
        "bindlm ask": [sys.executable, "-m", "bindlm", "ask", QUESTION],
        "transformers": [sys.executable, "-c", PEER, str(folder), QUESTION],
    }
    for command in ways.values():
        first_output(command)  # warm up
    rows = [[first_output(command) for command in ways.values()] for _ in range(options.runs)]
    columns = dict(zip(ways, zip(*rows, strict=True), strict=True))
    print("| process | first token, median | ratio to transformers |\n|---|---|---|")
    for name, column in columns.items():
        ratio = statistics.median(a / b for a, b in zip(column, columns["transformers"], strict=True))
        print(f"| {name} | {statistics.median(column):.2f} s | {ratio:.2f} |")


if __name__ == "__main__":
    main()
