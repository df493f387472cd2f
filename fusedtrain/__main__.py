"""``python -m fusedtrain env | train | bench``. A sub-command imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys

# Sub-commands that are Typer applications, the `app` of a module: (module, extra with what it needs, help).
APPLICATIONS = {
    "train": ("fusedtrain.train.cli", "train", "train one model with stock PyTorch and with fusedtrain, side by side"),
    "bench": ("fusedtrain.bench.cli", "bench", "measure fusedtrain against PyTorch and others on this machine"),
}


def run_application(name: str, arguments: list[str]) -> None:
    module, extra, _ = APPLICATIONS[name]
    try:
        app = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "fusedtrain":
            raise
        sys.exit(f"python -m fusedtrain {name} needs {error.name}: pip install 'fusedtrain[{extra}]'")
    app(args=arguments, prog_name=f"python -m fusedtrain {name}")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    # Before any parser: all that follows the name belongs to the application, its --help too.
    if arguments and arguments[0] in APPLICATIONS:
        return run_application(arguments[0], arguments[1:])

    parser = argparse.ArgumentParser(prog="python -m fusedtrain", description="Fused parts for PyTorch training.")
    commands = parser.add_subparsers(dest="command", required=True)
    env_help = "tell what was built, with what, and which backend runs here, or the exact reason why not"
    env_command = commands.add_parser("env", help=env_help, description=env_help)
    env_command.add_argument("--json", action="store_true", help="as JSON, with a fingerprint of the machine")
    for name, (_, _, text) in APPLICATIONS.items():
        commands.add_parser(name, help=text)
    options = parser.parse_args(arguments)

    from fusedtrain import env

    print(env.as_json() if options.json else env.as_text())
    return None


if __name__ == "__main__":
    main()
