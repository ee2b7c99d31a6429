"""bindlm bench mini"""

from argparse import REMAINDER, ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="what to measure, such as mini")
    parser.add_argument("rest", nargs=REMAINDER, metavar="...", help="its own options")


def run(options: Namespace) -> int:
    from bindlm.evaluation.bench import main

    return main([options.name, *options.rest])
