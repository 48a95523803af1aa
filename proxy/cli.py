"""The command `sidestep`: flags, exit codes, and what is printed.

Exit codes: 0 well, 1 the answer is no (`health`), 2 the command or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from proxy import __version__
from proxy.commands import check, demo, health, replay, serve

Command = Callable[[argparse.Namespace], int]

COMMANDS = (serve, demo, check, replay, health)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name and return its exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except BrokenPipeError:
        # Whoever read our output has gone (`sidestep check | head`): nothing is left to say.
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidestep", description="A failover proxy for LLM APIs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sidestep {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        summary, _, rest = (module.__doc__ or "").partition("\n")
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name,
            help=summary.rstrip("."),
            description=summary,
            epilog=rest.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_flags(command)
        command.set_defaults(command=module.run)
    return parser
