"""The atheris target: any bytes through every decoder, guided by coverage.

    pip install atheris
    python tests/fuzz/fuzz_decoding.py -max_total_time=600 -rss_limit_mb=512 corpus/

It ends at the first exception that is not a `WireError`, and leaves the input in a file.
"""

import sys

import atheris

with atheris.instrument_imports(include=["fedmq", "decoding"]):
    from decoding import decode


def main() -> None:
    """Run until the time is over or something breaks."""
    atheris.Setup(sys.argv, lambda data: decode(data) and 0)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
