"""bindlm train recipes/mini/bind.yaml steps=200"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, such as those in recipes/")
    parser.add_argument(
        "overrides", nargs="*", type=key_value, metavar="KEY=VALUE", help="settings of the recipe to change"
    )


def run(options: Namespace) -> int:
    from bindlm.training import main

    return main([options.recipe, *options.overrides])


def key_value(text: str) -> str:
    if not text.partition("=")[0].strip() or "=" not in text:
        raise ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return text
